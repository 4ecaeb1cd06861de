// Package statefile keeps small state in files that outlive a crash, a full disk and damage.
//
// A write replaces the file whole: temporary file, fsync, rename, fsync of the folder. The copy before it stays
// beside it (".previous"), and is read when the newest is damaged. A damaged file is never fatal: it is set aside
// (".damaged"), named by an error of type *Damaged, and the next write makes a good one.
package statefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// MaxSize is the longest file that is read, in bytes. All that Wayleave keeps so is far shorter.
const MaxSize = 64 << 20

// Suffixes of the files beside a state file.
const (
	previous = ".previous"
	damaged  = ".damaged"
	temp     = ".new"
)

// Damaged says that a state file could not be read. What was returned with it is the copy from before, or
// nothing; it is safe to go on with.
type Damaged struct {
	Path string
	// Previous says that the copy from before was read in its place.
	Previous bool
	Err      error
}

// Error names the file and what is used in its place.
func (e *Damaged) Error() string {
	with := "going on without it"
	if e.Previous {
		with = "going on with the copy from before"
	}
	return fmt.Sprintf("%s: %v; %s", e.Path, e.Err, with)
}

// Unwrap is what the file met.
func (e *Damaged) Unwrap() error { return e.Err }

// IsDamaged says whether an error is but that a file was damaged, so that what came with it can be used.
func IsDamaged(err error) bool {
	var d *Damaged
	return errors.As(err, &d)
}

// Read reads a file, which check, when it is not nil, must accept. No file is the zero value without error. A
// damaged file is an error of type *Damaged beside the value to go on with; so is one that the disk does not
// give.
func Read[T any](path string, check func(T) error) (T, error) {
	return ReadWith(path, func(raw []byte) (T, error) { return decode(raw, check) })
}

// ReadWith is Read for what is no JSON.
func ReadWith[T any](path string, decode func([]byte) (T, error)) (T, error) {
	v, err := read(path, decode)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	old, oldErr := read(path+previous, decode)
	// For people, and so that the next read finds the good copy. On a disk that cannot be written both stay.
	if os.Rename(path, path+damaged) == nil && oldErr == nil {
		_ = os.Link(path+previous, path)
	}
	return old, &Damaged{path, oldErr == nil, err}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func read[T any](path string, decode func([]byte) (T, error)) (v T, err error) {
	f, err := os.Open(path)
	if err != nil {
		return v, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return v, err
	}
	if len(raw) > MaxSize {
		return v, fmt.Errorf("more than %d bytes", MaxSize)
	}
	got, err := decode(raw)
	if err != nil {
		return v, err // of what was half read nothing is used
	}
	return got, nil
}

func decode[T any](raw []byte, check func(T) error) (v T, err error) {
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return v, errors.New("empty")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&v); err != nil {
		return v, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return v, errors.New("data after the value")
	}
	if check != nil {
		err = check(v)
	}
	return v, err
}

// Tell is told what is wrong with a state file, and nil once it has been written again. A nil Tell tells nobody.
type Tell func(path string, err error)

func (t Tell) tell(path string, err error) {
	if t != nil {
		t(path, err)
	}
}

// Recall is Read for what must go on with whatever there is: tell is told of damage.
func Recall[T any](path string, tell Tell, check func(T) error) T {
	v, err := Read(path, check)
	if err != nil {
		tell.tell(path, err)
	}
	return v
}

// Keep is Write for what must go on when the disk takes nothing: tell is told. False is not written.
func Keep(path string, v any, tell Tell) bool {
	err := Write(path, v)
	if err != nil {
		err = fmt.Errorf("%s: not written; lost at the next restart: %w", path, err)
	}
	tell.tell(path, err)
	return err == nil
}

// Write replaces a file by a value, 0600, in a folder that is made when it is missing. After an error the file is
// as it was.
func Write(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteBytes(path, raw, 0o600)
}

// WriteBytes is Write for what is no JSON.
func WriteBytes(path string, raw []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := writeTemp(path+temp, raw, mode); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(path+temp)))
	}
	if exists(path) {
		// A hard link: there is a good copy under the path at every moment. A file system without links keeps
		// no copy from before.
		_ = os.Remove(path + previous)
		_ = os.Link(path, path+previous)
	}
	if err := os.Rename(path+temp, path); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(path+temp)))
	}
	return SyncDir(dir)
}

func writeTemp(path string, raw []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SyncDir has the names of a folder on disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove forgets a file and its copies; one that is missing is no error.
func Remove(path string) error {
	var errs []error
	for _, suffix := range []string{"", previous, damaged, temp} {
		if exists(path + suffix) { // a disk that cannot be written refuses to remove what is missing, too
			errs = append(errs, ignoreMissing(os.Remove(path+suffix)))
		}
	}
	return errors.Join(errs...)
}
