package h1

import "net/http"

// reasons are the texts of status lines.
var reasons = func() map[int]string {
	m := map[int]string{}
	for i := 100; i < 600; i++ {
		if s := http.StatusText(i); s != "" {
			m[i] = s
		}
	}
	return m
}()
