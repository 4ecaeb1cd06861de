// Command image packs programs into a container image, a docker-archive file,
// with no daemon and no registry: `make image`.
//
// The image holds the programs at /, the users that they run as, with -debian the
// programs of iptables and ipvsadm, and nothing else: no shell, no package manager.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"wayleave.dev/internal/dockerarchive"
)

const passwd = "root:x:0:0:root:/:/sbin/nologin\nwayleave:x:65532:65532:wayleave dns:/:/sbin/nologin\n"
const group = "root:x:0:\nwayleave:x:65532:\n"

func main() {
	arch := flag.String("arch", "amd64", "the programs' architecture")
	tag := flag.String("tag", "", "the image's name")
	out := flag.String("out", "", "the file to write")
	root := flag.String("debian", "", "a folder of unpacked packages with iptables and ipvsadm (hack/debian-root)")
	flag.Parse()
	if err := pack(*arch, *tag, *out, *root, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func pack(arch, tag, out, root string, programs []string) error {
	if tag == "" || out == "" || len(programs) == 0 {
		return errors.New("usage: image -arch ARCH [-debian FOLDER] -tag NAME -out FILE PROGRAM…")
	}
	var l dockerarchive.Layer
	attr := dockerarchive.Attr{}
	var errs []error
	for _, dir := range []string{"/etc", "/tmp"} {
		errs = append(errs, l.Dir(dir, 0o755, attr))
	}
	errs = append(errs,
		l.File("/etc/passwd", 0o644, []byte(passwd), attr),
		l.File("/etc/group", 0o644, []byte(group), attr))
	for _, p := range programs {
		errs = append(errs, l.Copy("/"+filepath.Base(p), 0o755, p, attr))
	}
	var env []string
	if root != "" {
		errs = append(errs, addDebian(&l, root, arch))
		env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return dockerarchive.WriteFile(out, dockerarchive.Image{
		Tags:         []string{tag},
		Architecture: arch,
		Config: dockerarchive.Config{Entrypoint: []string{"/" + filepath.Base(programs[0])},
			WorkingDir: "/", Env: env},
		Layers: []*dockerarchive.Layer{&l},
	})
}
