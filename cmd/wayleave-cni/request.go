package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	semver "github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"wayleave.dev/podnetwork/cni/call"
)

// The library's skeleton of a plugin (pkg/skel) is not used: its errors name neither
// variables nor fields nor the version, it wants a CNI_PATH that the specification
// calls optional, and it looks at the namespace only after ADD has changed it.

// versions are those of the specification that are spoken.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// commands are what can be asked: the variables that each needs, and the first
// version that has it.
var commands = map[string]struct {
	needs []string
	since string
}{
	"ADD":     {[]string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, "0.1.0"},
	"DEL":     {[]string{"CNI_CONTAINERID", "CNI_IFNAME"}, "0.1.0"},
	"CHECK":   {[]string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, "0.4.0"},
	"GC":      {nil, "1.1.0"},
	"STATUS":  {nil, "1.1.0"},
	"VERSION": {nil, "0.1.0"},
}

// parameters reads the environment. An error names the variable.
func parameters(getenv func(string) string) (call.Request, error) {
	bad := func(format string, args ...any) (call.Request, error) {
		return call.Request{}, call.Failure(types.ErrInvalidEnvironmentVariables, format, args...)
	}
	r := call.Request{Command: getenv("CNI_COMMAND"), ContainerID: getenv("CNI_CONTAINERID"),
		IfName: getenv("CNI_IFNAME"), Netns: getenv("CNI_NETNS")}
	command, ok := commands[r.Command]
	if !ok {
		return bad("CNI_COMMAND: %q is none; allowed are ADD, DEL, CHECK, GC, STATUS and VERSION", r.Command)
	}
	missing := slices.DeleteFunc(slices.Clone(command.needs), func(name string) bool { return getenv(name) != "" })
	if len(missing) > 0 {
		return bad("%s: missing, %s needs it", strings.Join(missing, ", "), r.Command)
	}
	if !slices.Contains(command.needs, "CNI_IFNAME") {
		return r, nil
	}
	if err := utils.ValidateContainerID(r.ContainerID); err != nil {
		return bad("CNI_CONTAINERID: %q: %s; allowed are letters, digits, and behind the first _, . and -",
			r.ContainerID, err.Msg)
	}
	if err := utils.ValidateInterfaceName(r.IfName); err != nil {
		return bad("CNI_IFNAME: %q: %s; allowed are 15 characters", r.IfName, err.Msg)
	}
	if strings.Contains(r.IfName, "%") {
		return bad("CNI_IFNAME: %q: has a %%, for which the kernel would choose a number", r.IfName)
	}
	args, err := call.ParseArgs(getenv("CNI_ARGS"))
	if err != nil && r.Command != "DEL" { // which needs none and must do all that it can
		return call.Request{}, err
	}
	r.Args = args
	return r, nil
}

// configuration checks the standard input and returns the version to answer in. An
// error names the field.
func configuration(command string, raw []byte) (version string, err error) {
	var c struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Type       string `json:"type"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return call.Version, call.Failure(types.ErrDecodingFailure, "network configuration: %v", err)
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0" // the specification's default before there was the field
	}
	reached, err := semver.GreaterThanOrEqualTo(c.CNIVersion, commands[command].since)
	if err != nil {
		return call.Version, call.Failure(types.ErrDecodingFailure, "cniVersion: %v", err)
	}
	if !slices.Contains(versions, c.CNIVersion) {
		return call.Version, call.Failure(types.ErrIncompatibleCNIVersion,
			"cniVersion: %q is not supported; allowed are %s", c.CNIVersion, strings.Join(versions, ", "))
	}
	if !reached {
		return c.CNIVersion, call.Failure(types.ErrIncompatibleCNIVersion, "cniVersion: %q has no %s, %s has",
			c.CNIVersion, command, commands[command].since)
	}
	if c.Name == "" {
		return c.CNIVersion, call.Failure(types.ErrInvalidNetworkConfig, "name: is missing")
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return c.CNIVersion, call.Failure(types.ErrInvalidNetworkConfig, "name: %q: %s", c.Name, err.Msg)
	}
	if c.Type == "" {
		return c.CNIVersion, call.Failure(types.ErrInvalidNetworkConfig, "type: is missing")
	}
	return c.CNIVersion, nil
}

// printVersion answers VERSION, in the version that was asked in. A person at a
// terminal gives no input.
func printVersion(in *os.File, out io.Writer) error {
	var asked struct {
		CNIVersion string `json:"cniVersion"`
	}
	if _, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err != nil {
		raw, err := io.ReadAll(in)
		if err != nil {
			return call.Failure(types.ErrIOFailure, "standard input: %v", err)
		}
		if raw = bytes.TrimSpace(raw); len(raw) > 0 {
			if err := json.Unmarshal(raw, &asked); err != nil {
				return call.Failure(types.ErrDecodingFailure, "standard input: %v", err)
			}
		}
	}
	if asked.CNIVersion == "" {
		asked.CNIVersion = call.Version
	}
	return printJSON(out, map[string]any{"cniVersion": asked.CNIVersion, "supportedVersions": versions})
}
