package podnetwork

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/podnetwork"
	plan "wayleave.dev/podnetwork/wireguard"
	"wayleave.dev/writeback"
)

// The table names each node with its handshake, bytes and dropped packets, and the packets that a second counter saw.
func TestTheTableOfEncryption(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	raw, err := json.Marshal([]encryptionRow{
		{EncryptedPeer: podnetwork.EncryptedPeer{Node: "n2", Device: "wayleave-wg0",
			Handshake: now.Add(-41 * time.Second),
			Received:  1804212, Sent: 7}, Plain: 3, Uplink: "eth0"},
		{EncryptedPeer: podnetwork.EncryptedPeer{Node: "n3", Note: "it has published no key"},
			Dropped: plan.Dropped{Out: 1, In: 2, NoKey: 9}, Plain: 3, Uplink: "eth0"}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := encryptionTable(raw, now)
	if err != nil {
		t.Fatal(err)
	}
	want := `NODE  DEVICE        HANDSHAKE  RECEIVED  SENT  DROPPED  NOTE
n2    wayleave-wg0  41s ago    1804212   7     0        
n3    none          never      0         0     12       it has published no key
unencrypted packets between pods seen on eth0: 3
`
	if text != want {
		t.Errorf("the table is\n%s\nwant\n%s", text, want)
	}
	if text, err := encryptionTable(nil, now); err != nil || !strings.Contains(text, "nothing is encrypted") {
		t.Errorf("without rows: %q, %v", text, err)
	}
}

// Keys of a Lease that are damaged, too many or of another length are left out, and harm no other node.
func TestKeysOfLeases(t *testing.T) {
	private, err := wireguard.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	key := private.Public()
	got := publishedBy(map[string][]writeback.TunnelKey{
		"good":    {{Key: key.String(), Port: 1}, {Key: key.String(), Port: 2}},
		"half":    {{Key: "damaged", Port: 1}, {Key: key.String(), Port: 2}},
		"none":    {{Key: "", Port: 1}},
		"zero":    {{Key: wireguard.Key{}.String(), Port: 1}},
		"toomany": {{Key: key.String(), Port: 1}, {Key: key.String(), Port: 2}, {Key: key.String(), Port: 3}}})
	if len(got) != 3 || got["good"].Keys != [2]wireguard.Key{key, key} ||
		!got["half"].Keys[0].IsZero() || got["half"].Keys[1] != key || got["toomany"] != got["good"] {
		t.Errorf("%v", got)
	}
}
