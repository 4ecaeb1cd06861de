package model

// ConfigMap is one that an Ingress names, with header fields.
type ConfigMap struct {
	Name Name
	// Data are names of header fields with their values, as they were written: at most MaxFields.
	Data map[string]string
	// Wrong says why Data is empty although the object is there; Missing that it was requested and does not exist. An
	// object that was not requested is not in the model.
	Wrong   string
	Missing bool
}

// Bounds of a ConfigMap: keys, and bytes of a value.
const (
	MaxFields     = 64
	MaxFieldValue = 4 << 10
)

var configMaps = describe(descriptor[*ConfigMap]{kind: ConfigMapKind, label: "ConfigMap",
	name: func(c *ConfigMap) Name { return c.Name }})

// PutConfigMap sets a ConfigMap; the store owns it from now on.
func (w *Writer) PutConfigMap(o *ConfigMap) { put(w, configMaps, o) }

// ConfigMap returns the ConfigMap of that name, if an Ingress names it.
func (v Snapshot) ConfigMap(n Name) (*ConfigMap, bool) { return get(v, configMaps, n) }
