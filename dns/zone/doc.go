// Package zone holds the names of the cluster, with their answers as prebuilt bytes.
package zone
