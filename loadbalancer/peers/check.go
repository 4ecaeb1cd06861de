package peers

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"
)

// label distinguishes Wayleave's heartbeats from those of other programs. It is authenticated with each message.
const label = "wayleave"

// labelHead is the label as memberlist writes it: a type, the length, the text.
var labelHead = append([]byte{244, byte(len(label))}, label...)

// The types of memberlist's messages (net.go of that library) that nodes send, and two that contain others.
const (
	pingMessage         = 0
	indirectPingMessage = 1
	ackMessage          = 2
	suspectMessage      = 3
	aliveMessage        = 4
	deadMessage         = 5
	pushPullMessage     = 6
	compoundMessage     = 7
	encryptedMessage    = 10
	nackMessage         = 11
	checksumMessage     = 12
	errorMessage        = 13
)

const (
	// streamHead is a type and a length of four bytes, before the encrypted rest.
	streamHead = 5
	nonceSize  = 12
	tagSize    = 16
	// sealed is the encryption version without padding, the only one that nodes use.
	sealed = 1
	// minSealed is a version, a nonce, one byte and a tag: memberlist fails on an empty message.
	minSealed = 1 + nonceSize + 1 + tagSize
)

var errForged = errors.New("no key decrypts the message")

// checker checks messages before memberlist reads them: it decrypts them with the keys of the cluster, and refuses
// what nodes never send: compression (a datagram of 2 KiB unpacks to 40 MB), messages for the program, and counts for
// which memberlist would allocate memory. memberlist decrypts the message again.
type checker struct{ ring *memberlist.Keyring }

// packet checks a datagram.
func (c checker) packet(b []byte) error {
	b, ok := bytes.CutPrefix(b, labelHead)
	if !ok {
		return errors.New("unknown label")
	}
	plain, err := c.open(b, []byte(label))
	if err != nil {
		return err
	}
	if plain[0] == checksumMessage && len(plain) > streamHead {
		plain = plain[streamHead:]
	}
	return checkMessage(plain, true)
}

// checkMessage checks a message, or the parts of a compound one.
func checkMessage(b []byte, compound bool) error {
	if len(b) == 0 {
		return errors.New("a message without a type")
	}
	switch b[0] {
	case pingMessage, indirectPingMessage, ackMessage, suspectMessage, aliveMessage, deadMessage, nackMessage:
		return nil
	case compoundMessage:
		if !compound {
			return errors.New("nested compound message")
		}
		return checkCompound(b[1:])
	}
	return fmt.Errorf("a message of type %d, which no node sends", b[0])
}

// checkCompound parses a count, lengths of two bytes each, and the messages.
func checkCompound(b []byte) error {
	if len(b) == 0 {
		return errors.New("a compound message without a count")
	}
	n := int(b[0])
	if b = b[1:]; len(b) < 2*n {
		return fmt.Errorf("a compound message of %d, cut short", n)
	}
	rest := b[2*n:]
	for i := range n {
		size := int(binary.BigEndian.Uint16(b[2*i:]))
		if size > len(rest) {
			return nil // memberlist ignores a truncated one
		}
		if err := checkMessage(rest[:size], false); err != nil {
			return err
		}
		rest = rest[size:]
	}
	return nil
}

// streamSize returns how many bytes follow the head of a message on a connection.
func (c checker) streamSize(head []byte, accepted bool, most int) (int, error) {
	if accepted {
		var ok bool
		if head, ok = bytes.CutPrefix(head, labelHead); !ok {
			return 0, errors.New("unknown label")
		}
	}
	if head[0] != encryptedMessage {
		return 0, errors.New("not encrypted")
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < minSealed || uint64(size) > uint64(most) {
		return 0, fmt.Errorf("a message of %d bytes; %d to %d are allowed", size, minSealed, most)
	}
	return int(size), nil
}

// stream checks a complete message on a connection. nodes is the number of other nodes.
func (c checker) stream(whole []byte, accepted bool, nodes int) error {
	if accepted {
		whole = whole[len(labelHead):]
	}
	data := append(bytes.Clone(whole[:streamHead]), label...)
	plain, err := c.open(whole[streamHead:], data)
	if err != nil {
		return err
	}
	switch {
	case plain[0] == pushPullMessage:
		return checkState(plain[1:], nodes)
	case accepted && plain[0] == pingMessage, !accepted && (plain[0] == ackMessage || plain[0] == errorMessage):
		return nil
	}
	return fmt.Errorf("a message of type %d, which no node sends on a connection", plain[0])
}

// checkState checks the head of a state: memberlist allocates memory for as many nodes as it names.
func checkState(b []byte, nodes int) error {
	var head struct{ Nodes, UserStateLen int }
	if err := codec.NewDecoder(bytes.NewReader(b), &codec.MsgpackHandle{}).Decode(&head); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	// memberlist keeps a node for a while after it is gone.
	if most := 2*nodes + 64; head.Nodes < 0 || head.Nodes > most || head.UserStateLen != 0 {
		return fmt.Errorf("state of %d nodes with %d bytes of the program; %d nodes and none are allowed", head.Nodes,
			head.UserStateLen, most)
	}
	return nil
}

// open decrypts a version, a nonce, and the rest.
func (c checker) open(b, data []byte) ([]byte, error) {
	if len(b) < minSealed || b[0] != sealed {
		return nil, errors.New("not encrypted with the heartbeat key")
	}
	for _, key := range c.ring.GetKeys() {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		if plain, err := gcm.Open(nil, b[1:1+nonceSize], b[1+nonceSize:], data); err == nil {
			return plain, nil
		}
	}
	return nil, errForged
}
