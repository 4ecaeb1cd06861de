package sockets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf/link"
)

// answersIn is how long answers to datagrams that were translated may take. The programs that name the VIP in them stay
// for that time after the others.
const answersIn = time.Second

// Remove implements Conn.
func (k *Kernel) Remove(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded != nil {
		k.loaded.Close()
	}
	k.loaded, k.have = nil, nil
	detached, err := k.detach(false)
	if detached {
		tick(ctx, answersIn)
	}
	_, err2 := k.detach(true)
	return errors.Join(err, err2, k.removeFolders(true))
}

// detach removes the links of hooks that serve answers, or those of the others, of all versions.
func (k *Kernel) detach(answers bool) (any bool, err error) {
	folders, err := k.folders()
	if err != nil {
		return false, err
	}
	for _, dir := range folders {
		for _, h := range hooks() {
			if h.answers != answers {
				continue
			}
			path := filepath.Join(dir, "link_"+h.program)
			l, e := link.LoadPinnedLink(path, nil)
			if errors.Is(e, fs.ErrNotExist) {
				continue
			}
			any = true
			if e == nil {
				e = errors.Join(l.Detach(), l.Close())
			}
			err = errors.Join(err, e, os.Remove(path))
		}
	}
	return any, err
}

// folders are those of all versions.
func (k *Kernel) folders() (out []string, err error) {
	list, err := os.ReadDir(k.Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), folderPrefix) {
			out = append(out, filepath.Join(k.Folder, e.Name()))
		}
	}
	return out, err
}

// removeFolders removes the folders of other versions, or all: a link without a pin is detached, and a map is freed.
func (k *Kernel) removeFolders(all bool) error {
	folders, err := k.folders()
	errs := []error{err}
	for _, dir := range folders {
		if all || dir != k.folder() {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	if all {
		_ = os.Remove(k.Folder) // if it is empty
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sockets: %w", err)
	}
	return nil
}

// Remains implements Conn.
func (k *Kernel) Remains(context.Context) (out []string, err error) {
	folders, err := k.folders()
	for _, dir := range folders {
		list, e := os.ReadDir(dir)
		err = errors.Join(err, e)
		for _, entry := range list {
			out = append(out, "pin "+filepath.Join(dir, entry.Name()))
		}
		if len(list) == 0 {
			out = append(out, "folder "+dir)
		}
	}
	return out, err
}
