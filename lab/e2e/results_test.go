package e2e

import (
	"bytes"
	"strings"
	"testing"
)

const report = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="4"><testsuite name="Kubernetes e2e suite">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.1"></testcase>
<testcase name="[It] [sig-network] DNS should work [Conformance] [sig-network, Conformance]" status="passed"
  time="2.5"></testcase>
<testcase name="[It] [sig-network] Services fail [sig-network]" status="failed" time="30"><failure
  message="timed out&#xA;goroutine 1" type="failed"></failure></testcase>
<testcase name="[It] [sig-apps] other" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
</testsuite></testsuites>`

func TestRead(t *testing.T) {
	results, err := Read(strings.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	results.Print(&out)
	const want = `pass    2.5s [sig-network] DNS should work [Conformance]
FAIL   30.0s [sig-network] Services fail
              timed out
1 passed, 1 failed
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	if err := results.Err(); err == nil || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("got %v", err)
	}
}

func TestNoTestIsAnError(t *testing.T) {
	results, err := Read(strings.NewReader(
		`<testsuites><testsuite><testcase name="[It] x"><skipped/></testcase></testsuite></testsuites>`))
	if err != nil || results.Err() == nil {
		t.Errorf("got %v, %v", err, results.Err())
	}
}

func TestFailedSetUpIsAFailure(t *testing.T) {
	results, err := Read(strings.NewReader(`<testsuites><testsuite><testcase ` +
		`name="[SynchronizedBeforeSuite]"><error message="no nodes"/></testcase></testsuite></testsuites>`))
	if err != nil || results.Failed() != 1 {
		t.Errorf("got %+v, %v", results, err)
	}
}

func TestBrokenReportIsAnError(t *testing.T) {
	if _, err := Read(strings.NewReader("<testsuites>")); err == nil {
		t.Error("no error")
	}
}

func TestProgressPassesVerdictsOnly(t *testing.T) {
	var out bytes.Buffer
	w := Progress(&out)
	for _, part := range []string{"noise\nWill ", "run 3 of 9 specs\nsteps",
		"\n  [FAILED] in [It] - x.go:1\nRan 3 of 9", " Specs\n"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got, want := out.String(),
		"Will run 3 of 9 specs\n  [FAILED] in [It] - x.go:1\nRan 3 of 9 Specs\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
