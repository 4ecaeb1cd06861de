// Command push sends the image in a docker-archive file to a registry: `make push`.
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

// push sends the only image of the archive, with compressed layers, and returns its name by digest. Blobs that the
// registry has are not sent again.
func push(ctx context.Context, archive, to string) (string, error) {
	ref, err := name.NewTag(to, name.StrictValidation)
	if err != nil {
		return "", fmt.Errorf("%s: %w", to, err)
	}
	img, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return "", fmt.Errorf("%s: %w", archive, err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithUserAgent("wayleave")); err != nil {
		return "", fmt.Errorf("push %s to %s: %w", archive, to, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("%s: %w", archive, err)
	}
	return ref.Context().Digest(digest.String()).String(), nil
}
