package model

// PeerSecret is a Secret with passwords of BGP sessions. It is never written to a disk, and String tells nothing of it.
type PeerSecret struct {
	Name Name
	// Values are the passwords by key of the Secret, with at most MaxPassword bytes each.
	Values map[string]string
}

// PeersNamespace is the namespace of Secrets that BGP objects name.
const PeersNamespace = "wayleave-peers"

// MaxPassword is the longest key of TCP MD5 that the kernel takes (TCP_MD5SIG_MAXKEYLEN), in bytes.
const MaxPassword = 80

// String names the Secret, and keeps it.
func (s PeerSecret) String() string { return "Secret " + s.Name.String() }

// GoString is String: %#v must not print a password either.
func (s PeerSecret) GoString() string { return s.String() }

var peerSecrets = describe(descriptor[*PeerSecret]{kind: PeerSecretKind, label: "PeerSecret",
	name: func(s *PeerSecret) Name { return s.Name }})

// PutPeerSecret sets a Secret; the store owns it from now on.
func (w *Writer) PutPeerSecret(o *PeerSecret) { put(w, peerSecrets, o) }

// PeerSecret returns the Secret of that name in PeersNamespace.
func (v Snapshot) PeerSecret(name string) (*PeerSecret, bool) {
	return get(v, peerSecrets, Name{Namespace: PeersNamespace, Name: name})
}

// Password returns the value of a key; ok is false if there is none.
func (v Snapshot) Password(k SecretKey) (password string, ok bool) {
	s, ok := v.PeerSecret(k.Name)
	if !ok {
		return "", false
	}
	password, ok = s.Values[k.Key]
	return password, ok
}
