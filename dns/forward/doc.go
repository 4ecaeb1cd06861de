// Package forward answers queries for names outside of the cluster: from hosts of the settings, the cache, or upstream
// servers. It tracks the health and the limitations of each server.
package forward
