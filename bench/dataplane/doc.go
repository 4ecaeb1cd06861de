// Package dataplane measures packets between pods: plain routed veths, and the modes nftables and ebpf.
package dataplane
