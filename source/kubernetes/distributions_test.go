package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// node lays the files of an archive below a new root. Lines of a cmdline are arguments; lines "link: NAME TARGET" of
// the
// comment are links.
func node(t *testing.T, a *txtar.Archive) (root string, comment []string) {
	t.Helper()
	root, comment = t.TempDir(), strings.Split(strings.TrimSpace(string(a.Comment)), "\n")
	for _, f := range a.Files {
		text := string(f.Data)
		if filepath.Base(f.Name) == "cmdline" {
			text = strings.ReplaceAll(text, "\n", "\x00")
			put(t, root, filepath.Join(filepath.Dir(f.Name), "status"), rootOfNode)
		}
		put(t, root, f.Name, text)
	}
	for _, line := range comment {
		if link, ok := strings.CutPrefix(line, "link: "); ok {
			name, target, _ := strings.Cut(link, " ")
			if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root, comment
}

func distributions(t *testing.T) map[string]*txtar.Archive {
	t.Helper()
	names, err := filepath.Glob("testdata/distributions/*.txtar")
	if err != nil || len(names) < 8 {
		t.Fatalf("%d distributions, %v", len(names), err)
	}
	all := map[string]*txtar.Archive{}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(name), ".txtar")] = a
	}
	return all
}

// factLines are facts as an archive's comment has them.
func factLines(f Facts) []string {
	var dns []string
	for _, a := range f.ClusterDNS {
		dns = append(dns, a.String())
	}
	return []string{fmt.Sprintf("server: %s from %s", f.Server, f.From),
		fmt.Sprintf("dns: %s %s", strings.Join(dns, ","), f.ClusterDomain),
		fmt.Sprintf("cni: %s %s from %s", f.CNI.ConfDir, strings.Join(f.CNI.BinDirs, ","), f.CNI.From)}
}

// Each recipe of docs/install is for a node with these files and processes.
func TestEachDistributionIsFound(t *testing.T) {
	for name, a := range distributions(t) {
		t.Run(name, func(t *testing.T) {
			root, comment := node(t, a)
			f := Host{Root: root}.Discover()
			if f.ServerProblem+f.DNSProblem+f.CNIProblem != "" {
				t.Errorf("problems: %s; %s; %s", f.ServerProblem, f.DNSProblem, f.CNIProblem)
			}
			for _, line := range factLines(f) {
				found := false
				for _, want := range comment {
					found = found || line == want
				}
				if !found {
					t.Errorf("found %q, which is not in\n%s", line, strings.Join(comment, "\n"))
				}
			}
		})
	}
}

// Whatever file of a node is damaged or missing: no panic, and what cannot be read is said with the setting that
// replaces it.
func TestADamagedFileOfANodeNamesTheSetting(t *testing.T) {
	for name, a := range distributions(t) {
		for i, f := range a.Files {
			if filepath.Base(f.Name) == "cmdline" {
				continue
			}
			for _, text := range []string{"", "{", "\x00\xff[[", strings.Repeat("[", 10000), "imports = [3]\n",
				strings.Repeat("#", maxFile+1)} {
				damaged := *a
				damaged.Files = append([]txtar.File{}, a.Files...)
				damaged.Files[i].Data = []byte(text)
				root, _ := node(t, &damaged)
				facts := Host{Root: root}.Discover()
				for setting, problem := range map[string]string{"apiServer": facts.ServerProblem,
					"clusterDNS": facts.DNSProblem, "podnetwork.cniConfDir": facts.CNIProblem} {
					if problem != "" && !strings.Contains(problem, setting) {
						t.Errorf("%s: %s: %.20q: the problem does not name %s: %s", name, f.Name, text, setting,
							problem)
					}
				}
			}
		}
	}
}

// The kubelet's own words about its files are believed: if they are not there, nothing else is guessed.
func TestAKubeletsFileThatIsNotMountedIsNotGuessed(t *testing.T) {
	root := t.TempDir()
	put(t, root, "/var/lib/kubelet/config.yaml", "clusterDNS: [10.96.0.10]\n")
	put(t, root, "/proc/5/cmdline", "/opt/bin/kubelet\x00--config=/opt/kubelet/config.yaml\x00")
	put(t, root, "/proc/5/status", rootOfNode)
	f := Host{Root: root}.Discover()
	if len(f.ClusterDNS) > 0 || !strings.Contains(f.DNSProblem, "/opt/kubelet/config.yaml") ||
		!strings.Contains(f.DNSProblem, "clusterDNS") {
		t.Errorf("found %v, %s", f.ClusterDNS, f.DNSProblem)
	}
}

func TestARuntimeReadsTheFolderThatItNames(t *testing.T) {
	c := CNI{ConfDir: "/var/snap/x/net.d", BinDirs: []string{"/a", "/b"}}
	for _, tc := range []struct {
		conf, bin string
		want      bool
	}{
		{"/var/snap/x/net.d", "/b", true}, {"/var/snap/x/net.d/", "/a/", true},
		{"/etc/cni/net.d", "/b", false}, {"/var/snap/x/net.d", "/c", false},
	} {
		if got := c.Reads(tc.conf, tc.bin); got != tc.want {
			t.Errorf("%v: %v", tc, got)
		}
	}
	if !(CNI{}).Reads("/etc/cni/net.d", "/opt/cni/bin") {
		t.Error("a runtime that is not known reads nothing")
	}
}
