// Package migrate turns what other programs were told into objects and settings of Wayleave. What becomes of everything
// that has no equal is written to notes, a line each, beginning with "note:" or "not carried over:".
package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"

	"wayleave.dev/config"
	"wayleave.dev/dns/corefile"
	"wayleave.dev/source/manifest"
)

// maxInput bounds a file that is read whole, in bytes.
const maxInput = 1 << 20

// MetalLB writes AddressPools and objects of BGP from MetalLB's objects. The error says also that something was not
// carried over; what was has been written all the same.
func MetalLB(file string, in io.Reader, out, notes io.Writer) error {
	return objects(manifest.MetalLB, file, in, out, notes)
}

// Calico writes objects of BGP and AddressPools from Calico's objects, and names the settings to make. The error is as
// for MetalLB.
func Calico(file string, in io.Reader, out, notes io.Writer) error {
	return objects(manifest.Calico, file, in, out, notes)
}

func objects(read func(string, io.Reader) ([]byte, []manifest.Note, error), file string, in io.Reader,
	out, notes io.Writer) error {
	result, list, err := read(file, in)
	lost := 0
	for _, n := range list {
		if n.Lost {
			lost++
		}
		note(notes, n.String(), n.Lost)
	}
	if err != nil {
		return err
	}
	return finish(out, result, lost)
}

// KubeProxy writes settings from a KubeProxyConfiguration, which may be nil, and flags of kube-proxy. The error is as
// for MetalLB.
func KubeProxy(in io.Reader, flags []string, out, notes io.Writer) error {
	var raw []byte
	if in != nil {
		var err error
		if raw, err = io.ReadAll(io.LimitReader(in, maxInput)); err != nil {
			return err
		}
		if len(raw) == 0 {
			return errors.New("the file is empty")
		}
	}
	got, err := config.ImportKubeProxy(raw, flags)
	if err != nil {
		return err
	}
	for _, n := range got.Notes {
		note(notes, n, false)
	}
	for _, n := range got.Lost {
		note(notes, n, true)
	}
	return finish(out, got.Settings, len(got.Lost))
}

// Corefile writes settings from a Corefile of CoreDNS, and says of every line what becomes of it, with the file's name
// where it has one. in may also be YAML of ConfigMaps: the key Corefile of one, which may import other keys. The error
// is as for MetalLB.
func Corefile(in io.Reader, name string, out, notes io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, maxInput))
	if err != nil {
		return err
	}
	text, files, err := corefileOf(raw)
	if err != nil {
		return err
	}
	settings, list, err := corefile.TranslateWith(text, files, config.Has)
	if err != nil {
		return err
	}
	lost := 0
	for _, n := range list {
		fmt.Fprintln(notes, n.In(name))
		if n.Lost {
			lost++
		}
	}
	if _, err := config.Parse(settings); err != nil {
		return fmt.Errorf("the Corefile has values that are none:\n%w", err)
	}
	return finish(out, settings, lost)
}

// configMap is what a Corefile is read from.
type configMap struct {
	Kind string
	Data map[string]string
}

// corefileOf returns a Corefile, and what it may import, of a text that is one, or YAML of ConfigMaps.
func corefileOf(raw []byte) (text string, files map[string]string, err error) {
	raw = bytes.TrimPrefix(raw, []byte("\ufeff"))
	files = map[string]string{}
	found := ""
	for doc := range bytes.SplitSeq(raw, []byte("\n---")) {
		var list struct{ Items []configMap }
		var one configMap
		if yaml.Unmarshal(doc, &one) != nil || yaml.Unmarshal(doc, &list) != nil {
			return string(raw), nil, nil // no YAML: a Corefile
		}
		if list.Items == nil {
			list.Items = []configMap{one}
		}
		for _, c := range list.Items {
			if c.Kind == "ConfigMap" && found == "" {
				found = "ConfigMap"
			}
			for k, v := range c.Data {
				files[k] = v
			}
		}
	}
	text, ok := files["Corefile"]
	switch {
	case ok:
		delete(files, "Corefile")
		return text, files, nil
	case found != "":
		return "", nil, errors.New("the ConfigMaps have no key Corefile")
	}
	return string(raw), nil, nil
}

// note writes a line about what is imported.
func note(to io.Writer, text string, lost bool) {
	what := "note"
	if lost {
		what = "not carried over"
	}
	fmt.Fprintln(to, what+":", text)
}

// finish writes the result, and fails if something was lost.
func finish(out io.Writer, result []byte, lost int) error {
	if _, err := out.Write(result); err != nil {
		return err
	}
	if lost == 0 {
		return nil
	}
	return fmt.Errorf("not carried over: %d, each named above", lost)
}
