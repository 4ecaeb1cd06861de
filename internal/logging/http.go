package logging

import (
	"fmt"
	"net/http"
	"strings"
)

// Path is where the socket of a process answers with the level of its log, and changes it.
const Path = "/log-level"

// LevelPath is the path of a POST that sets the level.
func LevelPath(level string) string { return Path + "?level=" + level }

// Serve adds Path to what a socket of the process answers. Only the user of the process may connect to that.
func (l *Log) Serve(mux *http.ServeMux) {
	if l == nil {
		return
	}
	mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, l.levelName()) })
	mux.HandleFunc("POST "+Path, func(w http.ResponseWriter, q *http.Request) {
		level, err := ParseLevel(q.URL.Query().Get("level"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		l.Set(Settings{Level: level, JSON: l.Settings().JSON})
		fmt.Fprintln(w, l.levelName())
	})
}

func (l *Log) levelName() string { return strings.ToLower(l.Settings().Level.String()) }
