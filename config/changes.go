package config

// Change is a setting whose meaning differs between two versions of the settings.
type Change struct {
	// Version is the first with the new meaning.
	Version int
	Key     string
	// What says what changes for who has set it.
	What string
}

// Changes lists the settings that changed their meaning, by Version. A setting that is new, or has another default, is
// not listed: the settings files of two manifests show that.
func Changes() []Change { return nil }
