// Package scrape carries the metrics of a process to the one that serves the metrics of all, over a unix socket.
//
// The process that has metrics connects to the agent's socket. The agent passes the connection on without reading from
// it. Each byte that arrives asks for the metrics: the response is four bytes of length, then Prometheus' text.
//
// Invariants:
//   - Who asks bounds the bytes and the time of a response, because the process may be captured.
//   - The agent reads no byte of a response.
package scrape

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"wayleave.dev/internal/frame"
)

const (
	// MaxBytes bounds the metrics of one process.
	MaxBytes = 2 << 20
	// within bounds how long the other side may take to read a response.
	within = 2 * time.Second
)

// LeftOut is the name of the metric that counts families of a process for which MaxBytes had no room.
const (
	LeftOut     = "wayleave_metrics_left_out"
	LeftOutHelp = "Metrics that a process left out, because all of them have more than 2 MiB."
)

// Serve answers with the metrics of g on a connection to the agent's socket until ctx ends. It connects again whenever
// the connection ends; there is none while the node serves no metrics.
func Serve(ctx context.Context, socket string, g prometheus.Gatherer) {
	_ = frame.Follow(ctx, socket, func(_ context.Context, c *net.UnixConn) error { return answer(c, g) },
		func(error) {}) // it ends with ctx
}

func answer(c net.Conn, g prometheus.Gatherer) error {
	var one [1]byte
	for {
		if _, err := io.ReadFull(c, one[:]); err != nil {
			return err
		}
		body, err := Text(g, MaxBytes)
		if err != nil {
			return err
		}
		if err := c.SetWriteDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
		if _, err := c.Write(append(out, body...)); err != nil {
			return err
		}
	}
}

// Text renders metrics in at most so many bytes. Families without room are left out and counted in LeftOut.
func Text(g prometheus.Gatherer, most int) ([]byte, error) {
	families, err := g.Gather()
	if err != nil && len(families) == 0 {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	const reserve = 512 // of the last family
	var out bytes.Buffer
	left := 0
	for _, f := range families {
		before := out.Len()
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		if out.Len() > most-reserve {
			out.Truncate(before)
			left++
		}
	}
	if _, err := expfmt.MetricFamilyToText(&out, leftOut(left)); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return out.Bytes(), nil
}

func leftOut(n int) *dto.MetricFamily {
	name, help, kind, v := LeftOut, LeftOutHelp, dto.MetricType_GAUGE, float64(n)
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &kind,
		Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: &v}}}}
}

// Ask asks the process at the other end for its metrics. The error is final: the connection is of no use afterwards.
func Ask(c net.Conn, deadline time.Time) ([]byte, error) {
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{'?'}); err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 {
		return nil, errors.New("no metrics")
	}
	if size > MaxBytes {
		return nil, fmt.Errorf("metrics of %d bytes; %d are allowed", size, MaxBytes)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(c, body)
	return body, err
}
