//go:build arm64image

package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// emulator runs programs of arm64 on this machine: Debian's package qemu-user-static.
const emulator = "/usr/bin/qemu-aarch64-static"

// The programs of the arm64 image run, and render what those of this machine render. `make test-arm64` runs it.
func TestTheArm64ImageRuns(t *testing.T) {
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "arm64.tar")
	run(t, top, "make", "-s", "ARCH=arm64", "dist/arm64/wayleave", "dist/arm64/wayleave-cni", "dist/arm64/debian.done")
	run(t, top, "go", "run", "./deploy/image", "-arch", "arm64", "-debian", "dist/arm64/debian", "-tag",
		"wayleave.dev/wayleave:arm64", "-out", archive, "dist/arm64/wayleave", "dist/arm64/wayleave-cni")
	image := unpack(t, archive)
	raw, err := os.ReadFile(emulator)
	if err != nil {
		t.Fatal("install qemu-user-static: ", err)
	}
	put(t, image, "qemu", raw)
	service := "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec:\n" +
		"  clusterIP: 10.96.0.7\n  selector: {app: web}\n  ports: [{port: 80}]\n"
	put(t, image, "service.yaml", []byte(service))

	if got := inside(t, image, "/wayleave", "version"); got == "" {
		t.Error("wayleave version says nothing")
	}
	native := filepath.Join(t.TempDir(), "wayleave")
	run(t, top, "go", "build", "-o", native, "./cmd/wayleave")
	for _, mode := range []string{"nftables", "iptables", "ipvs"} {
		args := []string{"render", "--mode", mode, "-f"}
		want := run(t, top, native, append(args, filepath.Join(image, "service.yaml"))...)
		got := inside(t, image, "/wayleave", append(args, "/service.yaml")...)
		if got != want || !strings.Contains(got, "10.96.0.7") {
			t.Errorf("mode %s: %s renders\n%s\narm64 renders\n%s", mode, runtime.GOARCH, want, got)
		}
	}
	if got := plugin(t, image); !strings.Contains(got, `"supportedVersions"`) {
		t.Errorf("wayleave-cni answers %q", got)
	}
	// qemu does not translate netlink of netfilter: these programs load, with all of their libraries, and say so.
	for program, want := range map[string]string{"/usr/sbin/iptables-legacy": "iptables v1.",
		"/usr/sbin/iptables-nft": "Failed to initialize nft", "/usr/sbin/ip6tables-nft": "Failed to initialize nft",
		"/sbin/ipvsadm": "ipvs"} {
		if got, _ := try(image, program, "--version"); !strings.Contains(got, want) {
			t.Errorf("%s says %q", program, got)
		}
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// inside runs a program of the image, which must succeed.
func inside(t *testing.T, image, program string, args ...string) string {
	t.Helper()
	out, err := try(image, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return out
}

func try(image, program string, args ...string) (string, error) {
	cmd := exec.Command("/qemu", append([]string{program}, args...)...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: image}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// plugin asks the CNI plugin for its versions, as runtimes do.
func plugin(t *testing.T, image string) string {
	t.Helper()
	cmd := exec.Command("/qemu", "/wayleave-cni")
	cmd.Dir, cmd.Env = "/", []string{"CNI_COMMAND=VERSION"}
	cmd.Stdin = strings.NewReader(`{"cniVersion": "1.1.0", "name": "x", "type": "wayleave-cni"}`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: image}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("wayleave-cni: %v: %s", err, out)
	}
	return string(out)
}

func put(t *testing.T, dir, name string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), raw, 0o755); err != nil {
		t.Fatal(err)
	}
}

// unpack lays the layers of a docker-archive out.
func unpack(t *testing.T, archive string) string {
	t.Helper()
	files, image := t.TempDir(), t.TempDir()
	run(t, files, "tar", "-xf", archive)
	raw, err := os.ReadFile(filepath.Join(files, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest []struct{ Layers []string }
	if err := json.Unmarshal(raw, &manifest); err != nil || len(manifest) != 1 {
		t.Fatalf("manifest.json: %d images, %v", len(manifest), err)
	}
	for _, layer := range manifest[0].Layers {
		run(t, image, "tar", "-xf", filepath.Join(files, layer))
	}
	checkArchitecture(t, filepath.Join(image, "wayleave"))
	return image
}

// checkArchitecture wants a program of arm64 (ELF, e_machine 183).
func checkArchitecture(t *testing.T, program string) {
	t.Helper()
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var head [20]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || head[18] != 183 {
		t.Fatalf("e_machine is %d, %v", head[18], err)
	}
}
