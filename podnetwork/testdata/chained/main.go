// Command chained is a CNI plugin for tests: it writes down what it is called with,
// and returns the previous result as its configuration says.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

type config struct {
	CNIVersion string         `json:"cniVersion"`
	PrevResult map[string]any `json:"prevResult"`
	// Log gets a line per call; the others say what ADD does.
	Log        string         `json:"log"`
	Fail       bool           `json:"fail"`
	DropRoutes bool           `json:"dropRoutes"`
	Result     map[string]any `json:"result"`
}

func main() {
	if err := serve(os.Getenv("CNI_COMMAND")); err != nil {
		fmt.Printf(`{"cniVersion":"1.1.0","code":999,"msg":%q}`, err)
		os.Exit(1)
	}
}

func serve(command string) error {
	if command == "VERSION" {
		_, err := fmt.Print(`{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`)
		return err
	}
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	if err := write(c.Log, command, raw); err != nil {
		return err
	}
	if command != "ADD" {
		return nil
	}
	if c.Fail {
		return fmt.Errorf("told to fail")
	}
	result := c.PrevResult
	if result == nil {
		result = c.Result
	}
	if c.DropRoutes {
		delete(result, "routes")
	}
	result["cniVersion"] = c.CNIVersion
	return json.NewEncoder(os.Stdout).Encode(result)
}

func write(file, command string, stdin json.RawMessage) error {
	line, err := json.Marshal(map[string]any{"command": command, "stdin": stdin})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}
