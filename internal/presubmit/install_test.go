package presubmit

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"wayleave.dev/config"
)

// recipes are the pages whose commands are for readers' own clusters.
func recipes(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, pattern := range []string{"docs/install/*.md", "docs/migrate/*.md"} {
		names, err := filepath.Glob(filepath.Join(root(t), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			raw, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			pages[strings.TrimPrefix(name, root(t)+"/")] = string(raw)
		}
	}
	if len(pages) == 0 {
		t.Fatal("no recipes")
	}
	return pages
}

// blocks are the indented code blocks of a page, without their indentation.
func blocks(page string) (out []string) {
	var b strings.Builder
	for line := range strings.Lines(page + "\n") {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			b.WriteString(code)
		} else if b.Len() > 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	return out
}

// Every command of a recipe is valid shell, and every file, target and setting that it names exists here.
func TestRecipesNameWhatExists(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := regexp.MustCompile(`\bmake ([a-z][a-z-]*)`)
	files := regexp.MustCompile(`(?:^|[\s"'=])((?:deploy|hack|lab|dist)/[\w./-]+)`)
	for name, page := range recipes(t) {
		for _, block := range blocks(page) {
			cmd := exec.Command("bash", "-n")
			cmd.Stdin = strings.NewReader(block)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s\n%s", name, err, out, block)
			}
			for _, m := range targets.FindAllStringSubmatch(block, -1) {
				if !bytes.Contains(makefile, []byte("\n"+m[1]+":")) {
					t.Errorf("%s: the Makefile has no target %q", name, m[1])
				}
			}
			for _, m := range files.FindAllStringSubmatch(block, -1) {
				_, err := os.Stat(filepath.Join(root(t), m[1]))
				if err != nil && !bytes.Contains(makefile, []byte("\n"+m[1]+":")) {
					t.Errorf("%s: %s does not exist, and no target makes it", name, m[1])
				}
			}
			checkSettings(t, name, block)
			checkCommands(t, name, block)
		}
		for _, m := range regexp.MustCompile("`([a-z]+\\.[a-z]+[A-Za-z]*)(?:: ?[a-z]+)?`").FindAllStringSubmatch(page,
			-1) {
			group, _, _ := strings.Cut(m[1], ".")
			if slices.ContainsFunc(config.Keys(), func(k string) bool { return strings.HasPrefix(k, group+".") }) &&
				!config.Has(m[1]) {
				t.Errorf("%s: there is no setting %s", name, m[1])
			}
		}
	}
}

// checkCommands wants each command of Wayleave in the generated page of commands.
func checkCommands(t *testing.T, name, block string) {
	t.Helper()
	cli, err := os.ReadFile(filepath.Join(root(t), "docs/cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?m)(?:^|[|;&] ?|-- /|ssh \$n )wayleave ((?:[a-z][a-z-]+ ?){1,2})`)
	for _, m := range command.FindAllStringSubmatch(block, -1) {
		words := strings.Fields(m[1])
		if !bytes.Contains(cli, []byte("\n## wayleave "+strings.Join(words, " ")+"\n")) &&
			!bytes.Contains(cli, []byte("\n## wayleave "+words[0]+"\n")) {
			t.Errorf("%s: docs/cli.md has no command %q", name, m[0])
		}
	}
}

// checkSettings reads the settings that a block writes to settings.yaml.
func checkSettings(t *testing.T, name, block string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?s)cat > settings\.yaml <<END\n(.*?)\nEND\n`).FindAllStringSubmatch(block,
		-1) {
		if _, err := config.ParseData(map[string]string{"settings.yaml": m[1]}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The commands that change the manifest are run word for word: what they render is what they promise.
func TestRecipesRenderTheManifest(t *testing.T) {
	ran := 0
	for name, page := range recipes(t) {
		for _, block := range blocks(page) {
			for line := range strings.Lines(block) {
				if !strings.HasPrefix(line, "sed ") || !strings.Contains(line, "deploy/wayleave.yaml") {
					continue
				}
				command, _, _ := strings.Cut(line, "|")
				cmd := exec.Command("bash", "-c", command)
				cmd.Dir = root(t)
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%s: %s: %v", name, command, err)
				}
				ran++
				if err := checkManifest(out); err != nil {
					t.Errorf("%s: %s: %v", name, command, err)
				}
				if original, err := os.ReadFile(filepath.Join(root(t), "deploy/wayleave.yaml")); err != nil ||
					bytes.Equal(original, out) {
					t.Errorf("%s: %s changes nothing, %v", name, command, err)
				}
			}
		}
	}
	if ran < 2 {
		t.Errorf("%d commands were found", ran)
	}
}

// checkManifest says whether the settings are valid and their folders of CNI mounted, and whether all images are the
// same.
func checkManifest(raw []byte) error {
	var cfg config.Config
	var ds appsv1.DaemonSet
	for _, doc := range strings.Split(string(raw), "\n---\n") {
		var cm corev1.ConfigMap
		if err := yaml.Unmarshal([]byte(doc), &cm); err != nil {
			return err
		}
		var err error
		switch {
		case cm.Kind == "ConfigMap" && cm.Name == "wayleave":
			cfg, err = config.ParseData(cm.Data)
		case cm.Kind == "DaemonSet":
			err = yaml.Unmarshal([]byte(doc), &ds)
		}
		if err != nil {
			return err
		}
	}
	spec := ds.Spec.Template.Spec
	for volume, folder := range map[string]string{"cni-conf": cfg.PodNetwork.CNIConfDir,
		"cni-bin": cfg.PodNetwork.CNIBinDir} {
		if !slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == volume && v.HostPath != nil && v.HostPath.Path == folder
		}) {
			return fmt.Errorf("the volume %s is not %s", volume, folder)
		}
		if !slices.ContainsFunc(spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == volume && m.MountPath == folder
		}) {
			return fmt.Errorf("%s is not mounted at %s", volume, folder)
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if c.Image != spec.Containers[0].Image {
			return fmt.Errorf("container %s has the image %s", c.Name, c.Image)
		}
	}
	return nil
}

// The table of the page says what the search finds on a node of each distribution.
func TestTheTableOfDistributionsIsWhatIsFound(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root(t), "docs/install/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for distribution, fixture := range map[string]string{"kubeadm": "kubeadm", "kind": "kind", "k3s": "k3s-server",
		"RKE2": "rke2", "k0s": "k0s", "MicroK8s": "microk8s", "Talos": "talos"} {
		a, err := txtar.ParseFile(filepath.Join(root(t), "source/kubernetes/testdata/distributions", fixture+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(page, "\n## "+distribution+"\n") {
			t.Errorf("no recipe for %s", distribution)
		}
		row := regexp.MustCompile(`(?m)^\| \[` + distribution + `\].*$`).FindString(page)
		facts := strings.ReplaceAll(string(a.Comment), "/microk8s/8612/", "/microk8s/current/")
		server := regexp.MustCompile(`(?m)^server: \S+ from (\S+)$`).FindStringSubmatch(facts)
		cni := regexp.MustCompile(`(?m)^cni: (\S+) (\S+) from`).FindStringSubmatch(facts)
		if server == nil || cni == nil {
			t.Fatalf("%s: %s", fixture, facts)
		}
		for _, want := range []string{server[1], cni[1], cni[2]} {
			if !strings.Contains(row, "`"+want+"`") {
				t.Errorf("the row of %s does not have %s", distribution, want)
			}
		}
	}
}
