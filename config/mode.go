package config

import "fmt"

// Values of the setting encryption.
const (
	EncryptionNone      = "none"
	EncryptionStrict    = "wireguard"
	EncryptionPreferred = "wireguard-preferred"
)

// Encrypts says whether packets between nodes may be encrypted.
func (c Config) Encrypts() bool {
	return c.PodNetwork.Enabled && (c.Encryption == EncryptionStrict || c.Encryption == EncryptionPreferred)
}

// checkEncryption refuses settings that contradict each other. IPVS looks routes up without a source, so packets of
// pods to Services cannot be told from those of nodes.
func (c Config) checkEncryption() error {
	if c.Encrypts() && c.DataPlane() == "ipvs" && !c.PodNetwork.EncryptNodes {
		return fmt.Errorf("settings: encryption: found %s with mode: ipvs; this needs podnetwork.encryptNodes: true",
			c.Encryption)
	}
	return nil
}

// DataPlane is the name of the data plane that the setting mode stands for.
func (c Config) DataPlane() string {
	if c.Mode == "auto" {
		return "nftables"
	}
	return c.Mode
}
