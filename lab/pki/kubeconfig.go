package pki

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
)

// Kubeconfig writes a kubeconfig file for the certificate NAME of the
// authority, with keys and certificates in it.
func (a *Authority) Kubeconfig(file, server, name string) error {
	var encoded []any
	for _, part := range []string{"ca.crt", name + ".crt", name + ".key"} {
		data, err := os.ReadFile(filepath.Join(a.Dir, part))
		if err != nil {
			return fmt.Errorf("pki: kubeconfig %s: %w", file, err)
		}
		encoded = append(encoded, base64.StdEncoding.EncodeToString(data))
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: lab
  context: {cluster: lab, user: %s}
current-context: lab
`, server, encoded[0], name, encoded[1], encoded[2], name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("pki: kubeconfig: %w", err)
	}
	return nil
}
