// handshakes makes TLS connections one after the other, and reports their number.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	addr, name := flag.String("addr", "", "address of the server"), flag.String("name", "", "name to request")
	workers, d := flag.Int("workers", 8, "concurrent connections"), flag.Duration("time", time.Second, "how long")
	resume := flag.Bool("resume", false, "resume the session of an earlier connection")
	flag.Parse()
	if err := run(*addr, *name, *workers, *d, *resume); err != nil {
		fmt.Fprintln(os.Stderr, "handshakes:", err)
		os.Exit(1)
	}
}

// first keeps the first session that it gets, and returns it to all.
type first struct {
	mu      sync.Mutex
	session *tls.ClientSessionState
}

// Get implements tls.ClientSessionCache.
func (f *first) Get(string) (*tls.ClientSessionState, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.session, f.session != nil
}

// Put implements tls.ClientSessionCache.
func (f *first) Put(_ string, s *tls.ClientSessionState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.session == nil && s != nil {
		f.session = s
	}
}

func run(addr, name string, workers int, d time.Duration, resume bool) error {
	// X25519 and AES-128-GCM, which all servers have: no server must look slow because it offers more. The certificate
	// is not verified, which is the client's cost.
	config := &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519}, NextProtos: []string{"http/1.1"}}
	if resume {
		config.ClientSessionCache = &first{}
		if err := begin(addr, name, config); err != nil {
			return err
		}
	}
	var done, failed atomic.Int64
	var why atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for time.Since(start) < d {
				if err := once(addr, config, resume); err != nil {
					failed.Add(1)
					why.Store(&err)
					continue
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Printf("handshakes %d failed %d seconds %f\n", done.Load(), failed.Load(), time.Since(start).Seconds())
	if p := why.Load(); p != nil {
		fmt.Println("the last failed with", *p)
	}
	return nil
}

// begin makes one request; the session arrives with its answer.
func begin(addr, name string, config *tls.Config) error {
	c, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "GET /1k HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for err == nil {
		_, err = c.Read(buf)
	}
	if _, ok := config.ClientSessionCache.Get(""); !ok {
		return errors.New("the server gave no session")
	}
	return nil
}

func once(addr string, config *tls.Config, resume bool) error {
	raw, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		return err
	}
	if c.ConnectionState().DidResume != resume {
		return fmt.Errorf("resumed: %v", !resume)
	}
	return c.Close() // by then the server has completed the handshake
}
