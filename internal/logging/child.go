package logging

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// childFD is the descriptor from which a child process reads its settings, a line of JSON for each change.
const childFD = 4

// childWithin bounds how long a child may take to read a change. One that does not read keeps its level.
const childWithin = 100 * time.Millisecond

// Pipe returns the file that a child process gets as descriptor 4, right behind that of its socket. Close the file once
// the child has been started, and call stop when it has ended.
func (l *Log) Pipe() (theirs *os.File, stop func(), err error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("log of a child: %w", err)
	}
	unfollow := l.Follow(func(s Settings) {
		line, err := json.Marshal(s)
		if err != nil {
			return
		}
		if err := ours.SetWriteDeadline(time.Now().Add(childWithin)); err != nil {
			return
		}
		_, _ = ours.Write(append(line, '\n')) // it has ended, or does not read
	})
	return theirs, func() { unfollow(); _ = ours.Close() }, nil
}

// OfParent makes the log of a child process, which follows the settings of the process that started it.
func OfParent(w io.Writer, process string) *slog.Logger {
	unix.CloseOnExec(childFD)
	lines := bufio.NewScanner(os.NewFile(childFD, "log settings"))
	next := func() (s Settings, ok bool) {
		ok = lines.Scan() && json.Unmarshal(lines.Bytes(), &s) == nil
		return s, ok
	}
	first, more := next()
	l := New(w, first)
	l.logger = l.logger.With("process", process)
	go func() {
		for more {
			var s Settings
			if s, more = next(); more {
				l.Set(s)
			}
		}
	}()
	return l.logger
}
