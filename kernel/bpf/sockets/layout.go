package sockets

import (
	"encoding/binary"
	"net/netip"

	"wayleave.dev/model"
)

// The types below are those of sockets.c. Both platforms are little-endian, so the low 16 bits of a word, which hold a
// port in network byte order, are its first two bytes.

type frontendKey struct {
	Addr     [16]byte
	Port     [4]byte
	Protocol uint32
}

type frontendValue struct{ Generation, Slots, Flags uint32 }

const podsOnly = 1

type slotKey struct{ Generation, Number uint32 }

type backend struct {
	Addr [16]byte
	Port [4]byte
}

type memberKey struct {
	Generation uint32
	Backend    backend
}

type podKey struct {
	Bits uint32
	Addr [16]byte
}

type nodeValue struct{ Host, Flags uint64 }

const translateHost = 1

func portOf(p uint16) (out [4]byte) {
	binary.BigEndian.PutUint16(out[:], p)
	return out
}

func addrPort(a [16]byte, port [4]byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), binary.BigEndian.Uint16(port[:]))
}

func encodeBackend(a netip.AddrPort) backend { return backend{a.Addr().As16(), portOf(a.Port())} }

func encodeKey(k Key) frontendKey {
	return frontendKey{k.At.Addr().As16(), portOf(k.At.Port()), uint32(k.Protocol)}
}

func (k frontendKey) decode() Key { return Key{addrPort(k.Addr, k.Port), model.Protocol(k.Protocol)} }

func encodeFlags(f Frontend) uint32 {
	if f.PodsOnly {
		return podsOnly
	}
	return 0
}

func encodePrefix(p netip.Prefix) podKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return podKey{uint32(bits), p.Masked().Addr().As16()}
}
