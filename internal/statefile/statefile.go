// Package statefile stores small state in files that survive a crash, a full disk and damage.
//
// A write replaces the file atomically: temporary file, fsync, rename, fsync of the folder. The previous copy is kept
// beside it (".previous"), and is read if the newest is damaged. A damaged file is never fatal: it is renamed
// (".damaged"), named by an error of type *Damaged, and the next write creates a good one.
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

// MaxSize is the longest file that is read, in bytes. Wayleave's files are far shorter.
const MaxSize = 64 << 20

// Suffixes of the files beside a state file.
const (
	previous = ".previous"
	damaged  = ".damaged"
	temp     = ".new"
)

// Damaged means that a state file could not be read. The value that is returned with it is the previous copy, or the
// zero value; it is safe to continue with it.
type Damaged struct {
	Path string
	// Previous means that the previous copy was read instead.
	Previous bool
	Err      error
}

// Error names the file and what is used instead.
func (e *Damaged) Error() string {
	with := "continuing without it"
	if e.Previous {
		with = "continuing with the previous copy"
	}
	return fmt.Sprintf("%s: %v; %s", e.Path, e.Err, with)
}

// Unwrap returns the cause.
func (e *Damaged) Unwrap() error { return e.Err }

// IsDamaged reports whether the only error is that a file was damaged, so that the returned value can be used.
func IsDamaged(err error) bool {
	var d *Damaged
	return errors.As(err, &d)
}

// Read reads a file, which check, if not nil, must accept. If there is no file, it returns the zero value without an
// error. For a damaged file, or one that the disk cannot read, it returns an error of type *Damaged with a value to
// continue with.
func Read[T any](path string, check func(T) error) (T, error) {
	return ReadWith(path, func(raw []byte) (T, error) { return decode(raw, check) })
}

// ReadWith is Read for formats other than JSON.
func ReadWith[T any](path string, decode func([]byte) (T, error)) (T, error) {
	v, err := read(path, decode)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	old, oldErr := read(path+previous, decode)
	// Renamed for people, and so that the next read finds the good copy. On a read-only disk both stay.
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
		return v, err // partly read values are not used
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

// Tell is called with the error of a state file, and with nil once it has been written again. It may be nil.
type Tell func(path string, err error)

func (t Tell) tell(path string, err error) {
	if t != nil {
		t(path, err)
	}
}

// Recall is Read for callers that continue in any case: tell gets the error.
func Recall[T any](path string, tell Tell, check func(T) error) T {
	v, err := Read(path, check)
	if err != nil {
		tell.tell(path, err)
	}
	return v
}

// Keep is Write for callers that continue if the disk accepts no writes: tell gets the error. It returns false if the
// file was not written.
func Keep(path string, v any, tell Tell) bool {
	err := Write(path, v)
	if err != nil {
		err = fmt.Errorf("%s: not written; lost at the next restart: %w", path, err)
	}
	tell.tell(path, err)
	return err == nil
}

// Write writes a value to a file, mode 0600, and creates the folder if it is missing. After an error the file is
// unchanged.
func Write(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteBytes(path, raw, 0o600)
}

// WriteBytes is Write for formats other than JSON.
func WriteBytes(path string, raw []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := writeTemp(path+temp, raw, mode); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(path+temp)))
	}
	if exists(path) {
		// A hard link ensures that the path has a good copy at every moment. A file system without links keeps no
		// previous copy.
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

// SyncDir writes the names in a folder to disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove removes a file and its copies; a missing one is not an error.
func Remove(path string) error {
	var errs []error
	for _, suffix := range []string{"", previous, damaged, temp} {
		if exists(path + suffix) { // a read-only disk refuses to remove a missing file, too
			errs = append(errs, ignoreMissing(os.Remove(path+suffix)))
		}
	}
	return errors.Join(errs...)
}
