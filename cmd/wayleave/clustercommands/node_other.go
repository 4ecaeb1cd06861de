//go:build !linux

package clustercommands

import (
	"context"
	"errors"

	"wayleave.dev/agent/report"
	"wayleave.dev/check"
)

// There are no sockets of agents: nodes run Linux.
const (
	agentSocket  = ""
	writerSocket = ""
)

var errNotLinux = errors.New("nodes run Linux: run this command on the node")

func askSocket(context.Context, string, string) (string, int, error) { return "", 0, errNotLinux }

func (q checkQuestion) ofNode(context.Context) (check.Report, error) {
	return check.Report{}, errNotLinux
}

// tables is empty: the tables of features are in their packages, which are for Linux.
func tables() []report.List { return nil }
