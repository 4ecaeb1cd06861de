package peers

import "slices"

// Meta is the state of a node in its heartbeats.
type Meta struct {
	// Willing says that the node takes addresses.
	Willing bool
	// MACs are those of the interfaces on which it answers.
	MACs [][6]byte
}

// The wire format of Meta: a version, flags, then the MACs. Later versions may append to it.
const (
	metaVersion = 1
	metaWilling = 1
	// maxMACs fits into what memberlist carries (512 bytes).
	maxMACs = 64
)

func (m Meta) bytes() []byte {
	b := []byte{metaVersion, 0, 0}
	if m.Willing {
		b[1] = metaWilling
	}
	macs := m.MACs[:min(len(m.MACs), maxMACs)]
	b[2] = byte(len(macs))
	for _, mac := range macs {
		b = append(b, mac[:]...)
	}
	return b
}

// parseMeta parses the state of a peer.
func parseMeta(b []byte) (Meta, bool) {
	if len(b) < 3 || b[0] < metaVersion || int(b[2]) > maxMACs || len(b) < 3+6*int(b[2]) {
		return Meta{}, false
	}
	m := Meta{Willing: b[1]&metaWilling != 0}
	for i := range int(b[2]) {
		m.MACs = append(m.MACs, [6]byte(b[3+6*i:]))
	}
	return m, true
}

func (m Meta) equal(o Meta) bool { return m.Willing == o.Willing && slices.Equal(m.MACs, o.MACs) }
