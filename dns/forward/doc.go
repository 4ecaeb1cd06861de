// Package forward answers for names outside of the cluster: from hosts of the settings, the cache, or upstream
// servers, each with its health and its habits.
package forward
