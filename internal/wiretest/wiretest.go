// Package wiretest checks that a message between processes of two versions stays as an earlier version wrote it.
package wiretest

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"
)

// Unchanged decodes a file that an earlier version wrote, with every field set, and encodes it again: T must know
// all of its fields, and lose none. So both versions read what the other one writes.
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
		t.Errorf("%s: a field of the earlier version is not known: %v", file, err)
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
