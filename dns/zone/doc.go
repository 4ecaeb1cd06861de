// Package zone holds the names of the cluster, with their answers as bytes that are ready to send.
package zone
