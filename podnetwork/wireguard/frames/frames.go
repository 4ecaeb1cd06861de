// Package frames is what the agent and a process that encrypts tell each other.
package frames

// Process is the command that runs a process.
const Process = "wireguard"

// Hello is what a process gets with the descriptors of its tun device and of the socket on which it is configured. It
// answers with the same once its device is up.
type Hello struct {
	// Name is the name of the device, Port its UDP port.
	Name string `json:"name"`
	Port uint16 `json:"port"`
}
