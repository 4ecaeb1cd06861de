package clustercommands

import (
	"context"
	"errors"
	"os"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/agent/report"
	"wayleave.dev/check"
)

// The sockets of an agent and of a writer on this node.
const (
	agentSocket  = agent.Socket
	writerSocket = agent.WriterSocket
)

func askSocket(ctx context.Context, socket, path string) (string, int, error) {
	return agent.Ask(ctx, socket, path)
}

func (q checkQuestion) ofNode(ctx context.Context) (check.Report, error) {
	if os.Geteuid() != 0 {
		return check.Report{}, errors.New("--node needs root: run it by sudo")
	}
	cfg, err := q.config(nil)
	if err != nil {
		return check.Report{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	return check.New(check.Host("", check.ReadHost(ctx, check.Place{Root: q.root}), cfg)), nil
}

// tables are those of features that have one.
func tables() (out []report.List) {
	for _, f := range features.All() {
		if l, ok := f.(agent.Lister); ok {
			out = append(out, l.List())
		}
	}
	return out
}
