package config

// DataPlane is the name of the data plane that the setting mode stands for.
func (c Config) DataPlane() string {
	if c.Mode == "auto" {
		return "nftables"
	}
	return c.Mode
}
