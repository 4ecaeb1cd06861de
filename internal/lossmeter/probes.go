package lossmeter

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// every calls fn at the rate until ctx ends. Late ticks are made up for, so that the number of calls follows the clock
// also on a busy machine.
func every(ctx context.Context, rate int, fn func(n uint64)) {
	start, gap := time.Now(), time.Second/time.Duration(rate)
	for n := uint64(0); ; n++ {
		wait := time.Until(start.Add(time.Duration(n) * gap))
		if wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		} else if ctx.Err() != nil {
			return
		}
		fn(n)
	}
}

// udp sends numbered datagrams over one flow and waits for their echoes.
func udp(ctx context.Context, dial Dial, c *counter) error {
	conn, err := dial("udp", c.Target, c.Patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	makeRoom(conn)
	var mu sync.Mutex
	under := map[uint64]time.Time{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64)
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || n < 8 {
				time.Sleep(time.Millisecond) // an ICMP error: the datagram counts as lost
				continue
			}
			mu.Lock()
			if at, ok := under[binary.BigEndian.Uint64(buf)]; ok {
				c.took(time.Since(at))
				delete(under, binary.BigEndian.Uint64(buf))
			}
			mu.Unlock()
		}
	}()
	every(ctx, c.Rate, func(n uint64) {
		var msg [8]byte
		binary.BigEndian.PutUint64(msg[:], n)
		mu.Lock()
		under[n] = time.Now()
		mu.Unlock()
		c.sent.Add(1)
		if _, err := conn.Write(msg[:]); err != nil {
			_, _ = conn.Write(msg[:]) // the error was for an earlier datagram
		}
	})
	for until := time.Now().Add(c.Patience); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		mu.Lock()
		all := len(under) == 0
		mu.Unlock()
		if all {
			break
		}
	}
	conn.Close()
	<-done
	if len(under) > 0 {
		oldest := ^uint64(0)
		for n := range under {
			oldest = min(oldest, n)
		}
		c.lose(int64(len(under)), "datagram %d of %d was the first without echo", oldest, c.sent.Load())
	}
	return nil
}

// echo sends one message over conn and waits for its echo.
func echo(conn net.Conn, n uint64, patience time.Duration) error {
	var msg, back [8]byte
	binary.BigEndian.PutUint64(msg[:], n)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write(msg[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, back[:]); err != nil {
		return err
	}
	if back != msg {
		return errors.New("another message was echoed")
	}
	return nil
}

// unknown is the number of segments that a connection sent again though nobody is known to have had them: a receiver
// reports duplicates (D-SACK, RFC 2883).
func unknown(info *unix.TCPInfo) int64 { return int64(info.Total_retrans) - int64(info.Dsack_dups) }

// opening returns an error if a connection, whose opening began at that time, took long because its first packet was
// lost. TCP also sends it again if the answer takes longer than a second, which is no loss: the measured round trip
// begins at the packet that was answered (RFC 7323, section 4), so it has the time for which TCP had waited if the
// first one was, and lacks it if only a later one was. known is for repaired.
func opening(conn net.Conn, since time.Time) (known int64, err error) {
	took := time.Since(since)
	info, err := tcpInfo(conn)
	if err != nil {
		return 0, err
	}
	if waited := took - time.Duration(info.Rtt)*time.Microsecond; info.Total_retrans > 0 && waited >= repair {
		return 0, fmt.Errorf("%s until open, of which %s were no round trip, and %d segments were sent again", took,
			waited, info.Total_retrans)
	}
	return unknown(info), nil
}

// repaired returns an error if an operation that began at that time took long because of lost packets, which TCP sent
// again until they arrived. If only the answer was late, the other side reports each as a duplicate, a moment later;
// it has patience for that. Packets that the other side lost are unknown here; the kind udp detects them.
func repaired(conn net.Conn, since time.Time, known int64, patience time.Duration) error {
	took := time.Since(since)
	if took < repair {
		return nil
	}
	for until := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		info, err := tcpInfo(conn)
		if err != nil {
			return fmt.Errorf("%s, and %w", took, err)
		}
		n := unknown(info) - known
		if n <= 0 {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("%s, and %d segments were sent again that had not arrived", took, n)
		}
	}
}

func tcpInfo(conn net.Conn) (info *unix.TCPInfo, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("the connection does not say what was sent again")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); e != nil {
		return nil, e
	}
	return info, err
}

// tcp keeps one connection open; a loss ends the connection, and a new one is opened.
func tcp(ctx context.Context, dial Dial, c *counter) error {
	at := time.Now()
	conn, err := dial("tcp", c.Target, c.Patience)
	if err != nil {
		return err
	}
	known, err := opening(conn, at)
	if err != nil {
		return err
	}
	every(ctx, c.Rate, func(n uint64) {
		c.sent.Add(1)
		at := time.Now()
		if conn == nil {
			if conn, err = dial("tcp", c.Target, c.Patience); err != nil {
				c.lose(1, "%v", err)
				conn = nil
				return
			}
			known, err = opening(conn, at)
		}
		opened := time.Now()
		if err == nil {
			err = echo(conn, n, c.Patience)
		}
		if err == nil {
			err = repaired(conn, opened, known, c.Patience)
		}
		if err != nil {
			c.lose(1, "open connection: %v", err)
			conn.Close()
			conn, err = nil, nil
			return
		}
		c.took(time.Since(at))
	})
	if conn != nil {
		conn.Close()
	}
	return nil
}

func connect(ctx context.Context, dial Dial, c *counter) error {
	return tries(ctx, c, func(n uint64) error {
		start := time.Now()
		conn, err := dial("tcp", c.Target, c.Patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		known, err := opening(conn, start)
		if err != nil {
			return err
		}
		opened := time.Now()
		if err := echo(conn, n, c.Patience); err != nil {
			return err
		}
		return repaired(conn, opened, known, c.Patience)
	})
}

// datagram uses a new flow for each message. A dropped one is never sent again, whereas TCP repeats the start of a
// connection.
func datagram(ctx context.Context, dial Dial, c *counter) error {
	return tries(ctx, c, func(n uint64) error {
		conn, err := dial("udp", c.Target, c.Patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		return echo(conn, n, c.Patience)
	})
}

// tries makes independent attempts at the rate, concurrently. When very many are open, the next one waits: with one
// more thread for each tick, a machine that is too slow for the rate would never recover.
func tries(ctx context.Context, c *counter, try func(n uint64) error) error {
	var wg sync.WaitGroup
	open := make(chan struct{}, mostOpen(c.Rate))
	every(ctx, c.Rate, func(n uint64) {
		select {
		case open <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c.sent.Add(1)
		wg.Go(func() {
			defer func() { <-open }()
			at := time.Now()
			if err := try(n); err != nil {
				c.lose(1, "%v", err)
				return
			}
			c.took(time.Since(at))
		})
	})
	wg.Wait()
	return nil
}

// mostOpen returns how many attempts of a probe may be open: those of a second, and not fewer than 64.
func mostOpen(rate int) int { return max(64, rate) }

func dnsQueries(ctx context.Context, dial Dial, c *counter) error {
	server, name, ok := strings.Cut(c.Target, "/")
	if !ok {
		return errors.New("the target must be server:port/name")
	}
	ask := func() error {
		conn, err := dial("udp", server, c.Patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
		client := dns.Client{Timeout: c.Patience}
		r, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: conn})
		if err != nil {
			return err
		}
		if r.Rcode != dns.RcodeSuccess || len(r.Answer) == 0 {
			return fmt.Errorf("%s with %d answers", dns.RcodeToString[r.Rcode], len(r.Answer))
		}
		return nil
	}
	return tries(ctx, c, func(uint64) error {
		err := ask()
		if err != nil && ask() != nil {
			c.again.Add(1)
		}
		return err
	})
}

func httpGets(ctx context.Context, dial Dial, c *counter) error {
	host, path, _ := strings.Cut(c.Target, "/")
	return tries(ctx, c, func(uint64) error {
		start := time.Now()
		conn, err := dial("tcp", host, c.Patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		known, err := opening(conn, start)
		if err != nil {
			return err
		}
		opened := time.Now()
		if err := conn.SetDeadline(time.Now().Add(c.Patience)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path,
			host); err != nil {
			return err
		}
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return err
		}
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
		return repaired(conn, opened, known, c.Patience)
	})
}
