package kubernetes

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// processes returns the command lines that match, of processes of the node. Pods can name their processes freely, so
// only processes of root outside of any container's PID namespace count.
func (h Host) processes(match func(args []string) bool) (out [][]string) {
	dirs, err := filepath.Glob(filepath.Join(h.Root, "proc/[0-9]*"))
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		raw, err := readSome(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has exited
		}
		args := splitCommand(string(raw))
		if !match(args) {
			continue
		}
		if status, err := readSome(filepath.Join(dir, "status")); err == nil && isOfNode(string(status)) {
			out = append(out, args)
		}
	}
	return out
}

// splitCommand splits a /proc/PID/cmdline. A process that has set its own title, as k3s does, has it in one word.
func splitCommand(raw string) []string {
	args := strings.Split(strings.TrimRight(raw, "\x00"), "\x00")
	if words := strings.Fields(args[0]); len(args) == 1 && len(words) > 1 {
		return words
	}
	return args
}

// isOfNode reports whether the process of that /proc/PID/status runs as root outside of any container's PID
// namespace: NSpid then has one number, that of the mounted /proc (proc_pid_status(5)).
func isOfNode(status string) bool {
	root, ofNode := false, false
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		switch fields := strings.Fields(value); key {
		case "Uid":
			root = len(fields) == 4 && !slices.ContainsFunc(fields, func(s string) bool { return s != "0" })
		case "NSpid":
			ofNode = len(fields) == 1
		}
	}
	return root && ofNode
}

// flag returns the last value of --name=value or --name value; names of one letter have one dash.
func flag(args []string, names ...string) (v string) {
	for i, a := range args {
		for _, name := range names {
			option := "--" + name
			if len(name) == 1 {
				option = "-" + name
			}
			if text, ok := strings.CutPrefix(a, option+"="); ok {
				v = text
			} else if a == option && i+1 < len(args) {
				v = args[i+1]
			}
		}
	}
	return v
}

// maxFile bounds a file of the node.
const maxFile = 1 << 20

func readSome(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(raw) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	return raw, err
}

// read reads a file of the node.
func (h Host) read(file string) ([]byte, error) { return readSome(filepath.Join(h.Root, file)) }

// maxFiles bounds the files of a folder or an import.
const maxFiles = 64

// list returns the files of the node that match a pattern, as the node names them, in order of names.
func (h Host) list(pattern string) []string {
	found, err := filepath.Glob(filepath.Join(h.Root, pattern))
	if err != nil {
		return nil
	}
	found = found[:min(len(found), maxFiles)]
	for i, name := range found {
		if rel, err := filepath.Rel(filepath.Join("/", h.Root), filepath.Join("/", name)); err == nil {
			found[i] = "/" + rel
		}
	}
	return found
}
