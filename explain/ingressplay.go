package explain

import (
	"fmt"
	"io"
)

// Play compares how the requests of a list are served, see ReadRequests. It writes each difference and a summary, and
// says whether there was a difference.
func (c IngressCheck) Play(list io.Reader, out io.Writer) (differ bool, err error) {
	requests, err := ReadRequests(list)
	if err != nil {
		return false, err
	}
	routing, n := c.Routing(), 0
	for _, q := range requests {
		if d := routing.Compare(q); d != nil {
			n++
			fmt.Fprintln(out, d)
		}
	}
	fmt.Fprintf(out, "%d of %d requests are served otherwise than by ingress-nginx.\n", n, len(requests))
	return n > 0, nil
}
