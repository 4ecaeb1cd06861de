package hostport

import (
	"strings"
	"testing"

	"wayleave.dev/model"
)

// A pod takes no port of the node's own listeners; the error names the field and whose
// port it is.
func TestPortsOfTheNodeAreNoHostPorts(t *testing.T) {
	for port, whose := range map[int]string{10250: "kubelet", 6443: "API server", 10053: "DNS", 2379: "etcd",
		10249: "Wayleave", 7946: "heartbeats"} {
		_, err := Parse([]Request{{HostPort: port, ContainerPort: 80, Protocol: "tcp"}}, model.ReservedPort)
		if err == nil || !strings.Contains(err.Error(), "portMappings[0].hostPort") ||
			!strings.Contains(err.Error(), whose) {
			t.Errorf("%d: %v", port, err)
		}
	}
	if _, err := Parse([]Request{{HostPort: 443, ContainerPort: 8443, Protocol: "tcp"},
		{HostPort: 10250, ContainerPort: 1, Protocol: "sctp"}}, model.ReservedPort); err != nil {
		t.Errorf("other ports: %v", err)
	}
	own := func(_ model.Protocol, port uint16) string { return map[uint16]string{16443: "the API server"}[port] }
	if _, err := Parse([]Request{{HostPort: 16443, ContainerPort: 80}}, own); err == nil ||
		!strings.Contains(err.Error(), "16443/TCP is a port of the API server") {
		t.Errorf("the cluster's own port: %v", err)
	}
}
