package h1

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// ends are the two of a connection, one of them direct.
func ends(t *testing.T) (client *net.TCPConn, direct *Direct) {
	t.Helper()
	client, server := testnet.TCP(t)
	return client, NewDirects().Of(server)
}

// A Direct connection is a connection: bytes in order, ends, time-outs; what is corked comes
// when it is uncorked, and not before.
func TestDirect(t *testing.T) {
	client, d := ends(t)
	var want []byte
	go func() {
		for i := range 200 {
			d.Cork()
			for j := range 5 {
				if _, err := d.Write(bytes.Repeat([]byte{byte(i), byte(j)}, i*j*7)); err != nil {
					t.Error(err)
				}
			}
			if err := d.Uncork(); err != nil {
				t.Error(err)
			}
		}
		_ = d.CloseWrite()
	}()
	for i := range 200 {
		for j := range 5 {
			want = append(want, bytes.Repeat([]byte{byte(i), byte(j)}, i*j*7)...)
		}
	}
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if n := d.from.used.Load(); n != 0 {
		t.Errorf("%d are corked after the end", n)
	}
	if err := d.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read that waits too long: %d, %v", n, err)
	}
	_ = d.SetReadDeadline(time.Time{})
	if _, err := client.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	_ = client.CloseWrite()
	if got, err := io.ReadAll(d); err != nil || string(got) != "last" {
		t.Errorf("%q, %v", got, err)
	}

	client, d = ends(t)
	d.Cork()
	if _, err := d.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	_ = client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := client.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("what is corked comes: %d, %v", n, err)
	}
	if err := d.Uncork(); err != nil {
		t.Fatal(err)
	}
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 4)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "held" {
		t.Errorf("%q, %v", got, err)
	}
	d.from.used.Store(mostCorks) // as many as may be
	d.Cork()
	if _, err := d.Write([]byte("now.")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "now." {
		t.Errorf("above the bound: %q, %v", got, err)
	}
	if err := d.Uncork(); err != nil || d.from.used.Load() != mostCorks {
		t.Errorf("%v, %d are corked", err, d.from.used.Load())
	}
	_ = d.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	var err error
	for part := make([]byte, 64<<10); err == nil; {
		_, err = d.Write(part)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write that waits too long: %v", err)
	}
	d.Close()
	if _, err := d.Write([]byte("x")); err == nil {
		t.Error("a closed connection takes more")
	}
	if _, err := d.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a closed connection says %v", err)
	}
}

// Below TLS it is found, and both directions work at once.
func TestDirectBelowTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)},
		&x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	client, d := ends(t)
	server := tls.Server(d, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if DirectOf(server) != d || DirectOf(client) != nil {
		t.Fatal("the connection below TLS is not found")
	}
	asker := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	want := bytes.Repeat([]byte("body"), 200<<10)
	errs := make(chan error, 2)
	go func() { // an echo, while more comes
		w := writer{c: server, from: newBuffers()}
		w.init()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if n > 0 {
				w.string("head")
				w.send(buf[:n])
			}
			if err == io.EOF || w.err != nil {
				errs <- errors.Join(w.err, server.Close())
				return
			}
			if err != nil {
				errs <- err
				return
			}
		}
	}()
	go func() {
		_, err := asker.Write(want)
		errs <- errors.Join(err, asker.CloseWrite())
	}()
	got, err := io.ReadAll(asker)
	if err := errors.Join(err, <-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	if got = bytes.ReplaceAll(got, []byte("head"), nil); !bytes.Equal(got, want) {
		t.Errorf("%d bytes came of %d", len(got), len(want))
	}
}
