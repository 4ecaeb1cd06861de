package table

import "bytes"

// Route finds the path for a request: of the host's own, else of hosts that are not named.
func (t *Table) Route(name, path []byte, m *Match) bool {
	routes := t.Lookup(name)
	if routes != nil && routes.Find(path, m) {
		return true
	}
	rest := t.Rest()
	return rest != nil && rest != routes && rest.Find(path, m)
}

// above are the routes of the wildcard host for a name.
func (t *Table) above(name []byte) *Routes {
	if i := bytes.IndexByte(name, '.'); i > 0 && len(t.wild) > 0 {
		return t.wild[string(name[i:])]
	}
	return nil
}

func (p *Path) shut() bool { return false }

func (m *Match) work() int { return 0 }
