// Command push sends the image in a docker-archive, or what an archive of an OCI image layout has, to a registry:
// `make push`, `make push-release`.
//
// Credentials are those that `docker login` and `podman login` leave (config.json in DOCKER_CONFIG or ~/.docker, and
// auth.json in REGISTRY_AUTH_FILE or XDG_RUNTIME_DIR/containers).
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "push:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: push ARCHIVE REGISTRY/NAME:TAG")
	}
	pushed, err := push(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	fmt.Println(pushed)
	return nil
}

// push sends the only image of the archive, with compressed layers, and returns its name by digest. Of an OCI image
// layout it sends the first entry: an image for several architectures, or a chart. Blobs that the registry has are not
// sent again.
func push(ctx context.Context, archive, to string) (string, error) {
	ref, err := name.NewTag(to, name.StrictValidation)
	if err != nil {
		return "", fmt.Errorf("%s: %w", to, err)
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithUserAgent("wayleave")}
	dir, err := os.MkdirTemp("", "push")
	if err != nil {
		return "", fmt.Errorf("%s: %w", archive, err)
	}
	defer os.RemoveAll(dir)
	isLayout, err := unpack(archive, dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w", archive, err)
	}
	var digest v1.Hash
	if isLayout {
		digest, err = pushLayout(dir, ref, options)
	} else {
		digest, err = pushImage(archive, ref, options)
	}
	if err != nil {
		return "", fmt.Errorf("push %s to %s: %w", archive, to, err)
	}
	return ref.Context().Digest(digest.String()).String(), nil
}

func pushImage(archive string, ref name.Tag, options []remote.Option) (v1.Hash, error) {
	img, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := remote.Write(ref, img, options...); err != nil {
		return v1.Hash{}, err
	}
	return img.Digest()
}

func pushLayout(dir string, ref name.Tag, options []remote.Option) (v1.Hash, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return v1.Hash{}, err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return v1.Hash{}, err
	}
	if len(list.Manifests) != 1 {
		return v1.Hash{}, fmt.Errorf("the layout has %d entries, want 1", len(list.Manifests))
	}
	d := list.Manifests[0]
	if d.MediaType.IsIndex() {
		child, err := index.ImageIndex(d.Digest)
		if err != nil {
			return v1.Hash{}, err
		}
		return d.Digest, remote.WriteIndex(ref, child, options...)
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		return v1.Hash{}, err
	}
	return d.Digest, remote.Write(ref, img, options...)
}
