// Package wiretest checks that the format of messages between processes of two versions stays compatible.
package wiretest

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"
)

// Unchanged decodes a file that an earlier version wrote, with every field set, and encodes it again: T must know all
// of its fields, and lose none. Each version can therefore read what the other writes.
func Unchanged[T any](t *testing.T, file string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var message T
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&message); err != nil {
		t.Errorf("%s: unknown field of the earlier version: %v", file, err)
		return
	}
	again, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	var was, is any
	for to, text := range map[*any][]byte{&was: raw, &is: again} {
		if err := json.Unmarshal(text, to); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(was, is) {
		t.Errorf("%s is written as %s", file, again)
	}
}
