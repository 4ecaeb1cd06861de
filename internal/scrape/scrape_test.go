package scrape

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// All metrics of a process fit the bound: families without room are left out, and counted.
func TestMetricsOfAProcessAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	for i := range 20 {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: fmt.Sprintf("m%02d_total", i)}, []string{"host"})
		for host := range 100 * (1 + i%2) {
			v.WithLabelValues(fmt.Sprint(host, strings.Repeat("x", 100))).Inc()
		}
		reg.MustRegister(v)
	}
	const most = 100 << 10
	text, err := Text(reg, most)
	if err != nil || len(text) > most {
		t.Fatalf("%d bytes, %v; %d are allowed", len(text), err, most)
	}
	if strings.Contains(string(text), LeftOut+" 0\n") || !strings.Contains(string(text), LeftOut+" ") {
		t.Errorf("it is not told that metrics are left out: %s", text[len(text)-300:])
	}
	if text, err = Text(reg, MaxBytes); err != nil || !strings.Contains(string(text), LeftOut+" 0\n") {
		t.Errorf("%v: metrics that fit are left out", err)
	}
}

// A process that accepts the question and sends nothing is given up on at the deadline.
func TestASilentProcessIsGivenUpOn(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() { _, _ = theirs.Read(make([]byte, 1)) }()
	if _, err := Ask(ours, time.Now().Add(50*time.Millisecond)); err == nil {
		t.Error("no error")
	}
}
