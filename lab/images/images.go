// Package images builds the images that a lab's pods run: pause, busybox, and Kubernetes' own network test program with
// the tools that its tests call.
package images

import (
	"context"
	_ "embed"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"wayleave.dev/internal/dockerarchive"
	"wayleave.dev/lab/build"
	"wayleave.dev/lab/node"
)

// recipe changes if the same inputs are to give other images.
const recipe = "3"

//go:embed wget.sh
var wget []byte

// tools are the Debian packages in the agnhost image. The tests need GNU wget and OpenBSD's nc, and conntrack in
// distroless-iptables; busybox replaces tools that are not listed.
var tools = []string{"base-files", "bash", "bind9-dnsutils", "busybox-static", "conntrack", "coreutils", "curl",
	"grep", "hostname",
	"iproute2", "iptables", "iputils-ping", "libc-bin", "netcat-openbsd", "procps", "sed", "wget"}

const (
	path    = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	applets = "/usr/lib/busybox"
	e2e     = "registry.k8s.io/e2e-test-images/"
)

var root = dockerarchive.Attr{}

// Base returns an archive with all images of a lab with any network.
func Base(ctx context.Context, cache *build.Cache, programs *build.Programs) (string, error) {
	tree, err := cache.Root(ctx, "image-root", tools...)
	if err != nil {
		return "", err
	}
	inputs := []string{recipe, string(wget), tree, programs.Agnhost, programs.AgnhostVersion, programs.Pause,
		programs.InvalidPackets, node.PauseImage}
	dir, err := cache.Make("images", "images", inputs, func(dir string) error {
		all, err := base(ctx, tree, programs)
		if err != nil {
			return err
		}
		return dockerarchive.WriteFile(filepath.Join(dir, "lab.tar"), all...)
	})
	return filepath.Join(dir, "lab.tar"), err
}

func base(ctx context.Context, tree string, programs *build.Programs) ([]dockerarchive.Image, error) {
	pause, err := pauseImage(programs.Pause)
	if err != nil {
		return nil, err
	}
	busybox, err := busyboxImage(ctx, tree)
	if err != nil {
		return nil, err
	}
	agnhost, err := agnhostImages(ctx, tree, programs)
	if err != nil {
		return nil, err
	}
	invalid := &dockerarchive.Layer{}
	if err := invalid.Copy("/regression-issue-74839", 0o755, programs.InvalidPackets, root); err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	boom := image(dockerarchive.Config{Entrypoint: []string{"/regression-issue-74839"}},
		[]*dockerarchive.Layer{invalid}, e2e+"regression-issue-74839:1.4")
	return append([]dockerarchive.Image{pause, busybox, boom}, agnhost...), nil
}

func image(config dockerarchive.Config, layers []*dockerarchive.Layer, tags ...string) dockerarchive.Image {
	return dockerarchive.Image{Tags: tags, Architecture: runtime.GOARCH, Config: config, Layers: layers}
}

func pauseImage(program string) (dockerarchive.Image, error) {
	layer := &dockerarchive.Layer{}
	if err := layer.Copy("/pause", 0o755, program, root); err != nil {
		return dockerarchive.Image{}, err
	}
	return image(dockerarchive.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
			[]*dockerarchive.Layer{layer}, node.PauseImage, "registry.k8s.io/pause:3.10.1",
			"registry.k8s.io/pause:3.10"),
		nil
}

func busyboxImage(ctx context.Context, tree string) (dockerarchive.Image, error) {
	layer := &dockerarchive.Layer{}
	program := filepath.Join(tree, "bin/busybox")
	names, err := appletNames(ctx, program)
	if err != nil {
		return dockerarchive.Image{}, err
	}
	steps := []error{
		layer.Copy("/bin/busybox", 0o755, program, root),
		layer.Dir("/tmp", 0o777|fs.ModeSticky, root),
		layer.Dir("/root", 0o700, root),
		layer.Dir("/var/www", 0o755, root),
	}
	for _, name := range names {
		steps = append(steps, layer.Symlink("/bin/"+name, "busybox"))
	}
	steps = append(steps, layer.File("/bin/wget", 0o755, wget, root))
	steps = append(steps, users(layer)...)
	if err := first(steps); err != nil {
		return dockerarchive.Image{}, err
	}
	return image(dockerarchive.Config{Cmd: []string{"sh"}, Env: []string{"PATH=" + path}},
		[]*dockerarchive.Layer{layer}, "docker.io/library/busybox:latest", "docker.io/library/busybox:1.36",
		"docker.io/library/busybox:1.28", "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"), nil
}

// agnhostImages are Kubernetes' test program under its own name, and under the names of images that tests and examples
// use for a web server.
func agnhostImages(ctx context.Context, tree string, programs *build.Programs) ([]dockerarchive.Image, error) {
	system, program := &dockerarchive.Layer{}, &dockerarchive.Layer{}
	steps := []error{
		system.Tree("/", tree, root),
		system.Dir("/tmp", 0o777|fs.ModeSticky, root),
		system.Symlink("/bin/sh", "bash"),
		system.Symlink("/bin/nc", "nc.openbsd"),
		system.File("/etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\n"), root),
		program.Copy("/agnhost", 0o755, programs.Agnhost, root),
		program.Symlink("/agnhost-2", "agnhost"),
		program.Copy("/localhost.crt", 0o644, programs.PorterCrt, root),
		program.Copy("/localhost.key", 0o644, programs.Porter, root),
		program.Dir("/uploads", 0o777, root),
	}
	names, err := appletNames(ctx, filepath.Join(tree, "bin/busybox"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		steps = append(steps, system.Symlink(applets+"/"+name, "/bin/busybox"))
	}
	if err := first(append(steps, users(system)...)); err != nil {
		return nil, err
	}
	layers := []*dockerarchive.Layer{system, program}
	config := dockerarchive.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
		Env: []string{"PATH=" + path + ":" + applets}}
	web := config
	web.Cmd = []string{"netexec", "--http-port=80", "--udp-port=80"}
	return []dockerarchive.Image{
		image(config, layers, e2e+"agnhost:"+programs.AgnhostVersion, "docker.io/library/agnhost:latest",
			e2e+"glibc-dns-testing:2.0.0"),
		image(dockerarchive.Config{Cmd: []string{"sh"}, Env: config.Env}, layers[:1],
			"registry.k8s.io/build-image/distroless-iptables:v0.9.6"),
		image(web, layers, "docker.io/library/nginx:latest", e2e+"nginx:1.15-4", e2e+"nginx:1.27-0"),
	}, nil
}

// users adds the accounts that the tests expect.
func users(layer *dockerarchive.Layer) []error {
	return []error{
		layer.File("/etc/passwd", 0o644,
			[]byte(
				"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"+
					"user-defined-in-image:x:1000:1000::/:/bin/sh\n"), root),
		layer.File("/etc/group", 0o644,
			[]byte(
				"root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\n"+
					"group-defined-in-image:x:50000:user-defined-in-image\n"), root),
	}
}

func appletNames(ctx context.Context, busybox string) ([]string, error) {
	out, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("images: list the programs of busybox: %w", err)
	}
	var names []string
	for _, name := range strings.Fields(string(out)) {
		if name != "busybox" {
			names = append(names, name)
		}
	}
	return names, nil
}

func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("images: %w", err)
		}
	}
	return nil
}
