// Package frame carries messages between processes of one node over a unix socket: four bytes of length, then JSON;
// descriptors are sent with the first bytes.
//
// Invariants:
//   - Each side asks the kernel for the user of the peer (SO_PEERCRED) before it reads a
//     frame: a client accepts only the agent's user, a server only the users that it names.
//   - What the agent reads from a process with fewer rights is bounded in bytes and descriptors
//     before any of it is stored, and an unknown field is an error.
package frame

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxSize bounds a frame: the records of 10,000 services with 10 endpoints each
// take 10 MB.
const maxSize = 256 << 20

// Send writes a frame with descriptors.
func Send(c *net.UnixConn, v any, files []*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return write(c, body, files)
}

// Sender writes frames of several goroutines to one connection. A frame waits for the writing of another one, not for
// its encoding.
type Sender struct {
	Conn *net.UnixConn

	mu sync.Mutex
}

// Send writes a frame.
func (s *Sender) Send(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return write(s.Conn, body, nil)
}

func write(c *net.UnixConn, body []byte, files []*os.File) error {
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(head[:], rights, nil); err != nil {
		return err
	}
	_, err := c.Write(body)
	return err
}

// MaxPassed is the maximum number of descriptors in one frame.
const MaxPassed = 64

// Limits bound a frame from a peer with fewer rights.
type Limits struct {
	// Bytes bounds the JSON text.
	Bytes int
	// Files bounds the number of descriptors.
	Files int
	// AnyVersion ignores unknown fields: the peer may be of another version.
	AnyVersion bool
}

// Receive reads a frame of a trusted peer: the agent. The caller closes the files.
func Receive(c *net.UnixConn, v any) ([]*os.File, error) {
	body, files, err := read(c, Limits{Bytes: maxSize, Files: MaxPassed})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, v); err != nil {
		closeAll(files)
		return nil, fmt.Errorf("frame: %w", err)
	}
	return files, nil
}

// ReceiveWithin reads a frame of a peer that may be captured. It refuses a frame beyond the limits, and a field that v
// lacks; see Limits. The caller closes the files.
func ReceiveWithin(c *net.UnixConn, v any, most Limits) ([]*os.File, error) {
	body, files, err := read(c, most)
	if err != nil {
		return nil, err
	}
	if err := decode(body, v, most.AnyVersion); err != nil {
		closeAll(files)
		return nil, fmt.Errorf("frame: %w", err)
	}
	return files, nil
}

// decode parses one JSON value, which nothing may follow.
func decode(body []byte, v any, anyVersion bool) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if !anyVersion {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes follow the JSON value")
	}
	return nil
}

func read(c *net.UnixConn, most Limits) (body []byte, files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			body, files = nil, nil
		}
	}()
	var head [4]byte
	// There is room for one more than allowed: the kernel closes descriptors without room.
	oob := make([]byte, unix.CmsgSpace(4*(most.Files+1)))
	n, oobn, flags, _, err := c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, nil, err
	}
	if files, err = descriptors(oob[:oobn]); err != nil {
		return nil, files, err
	}
	if len(files) > most.Files || flags&unix.MSG_CTRUNC != 0 {
		return nil, files, fmt.Errorf("a frame with more than %d descriptors", most.Files)
	}
	if n == 0 {
		return nil, files, io.EOF
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return nil, files, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if uint64(size) > uint64(most.Bytes) {
		return nil, files, fmt.Errorf("a frame of %d bytes; %d are allowed", size, most.Bytes)
	}
	body = make([]byte, size)
	_, err = io.ReadFull(c, body)
	return body, files, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}

// descriptors extracts the files of control messages; it also returns those before an error.
func descriptors(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// PeerUID returns the user of the process at the other end.
func PeerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET,
			unix.SO_PEERCRED)
	})
	if err := errors.Join(err, inner); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}
