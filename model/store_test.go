package model

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
)

func addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func service(i int) *Service {
	return &Service{
		Name:       Name{"default", fmt.Sprintf("svc-%05d", i)},
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})},
		Ports:      []ServicePort{{Protocol: TCP, Port: 80}},
	}
}

func slice(i, endpoints, generation int) *EndpointSlice {
	s := &EndpointSlice{
		Name:    Name{"default", fmt.Sprintf("svc-%05d-x", i)},
		Service: fmt.Sprintf("svc-%05d", i),
		Ports:   []EndpointPort{{Protocol: TCP, Port: 8080}},
	}
	for e := range endpoints {
		s.Endpoints = append(s.Endpoints, Endpoint{Addr: addr(i*100 + e + generation), Ready: true, Serving: true,
			Node: "node1"})
	}
	return s
}

func open(t testing.TB) *Store {
	t.Helper()
	s, err := NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func write(t testing.TB, s *Store, fn func(*Writer)) {
	t.Helper()
	if err := s.Write(fn); err != nil {
		t.Fatal(err)
	}
}

func TestASnapshotNeverChanges(t *testing.T) {
	s := open(t)
	write(t, s, func(w *Writer) { w.PutService(service(1)); w.PutEndpointSlice(slice(1, 2, 0)) })
	before := s.Snapshot()
	write(t, s, func(w *Writer) {
		w.Delete(ServiceKind, service(1).Name)
		w.PutEndpointSlice(slice(1, 5, 0))
		w.PutService(service(2))
	})
	if _, ok := before.Service(service(1).Name); !ok || before.Count(ServiceKind) != 1 {
		t.Error("the older snapshot lost a service")
	}
	if l := slices.Collect(before.EndpointSlices(service(1).Name)); len(l) != 1 || len(l[0].Endpoints) != 2 {
		t.Errorf("the older snapshot has other slices: %v", l)
	}
	after := s.Snapshot()
	if _, ok := after.Service(service(1).Name); ok {
		t.Error("the newer snapshot still has the service")
	}
}

func TestNamesThatRunTogetherDiffer(t *testing.T) {
	s := open(t)
	write(t, s, func(w *Writer) {
		w.PutService(&Service{Name: Name{"a", "bc"}})
		w.PutService(&Service{Name: Name{"ab", "c"}})
	})
	if n := s.Snapshot().Count(ServiceKind); n != 2 {
		t.Errorf("%d services, want 2", n)
	}
}

func TestPodsAreFoundByAddress(t *testing.T) {
	s := open(t)
	host := &Pod{Name: Name{"a", "host"}, IPs: []netip.Addr{addr(1)}, HostNetwork: true}
	pod := &Pod{Name: Name{"a", "pod"}, IPs: []netip.Addr{addr(2), netip.MustParseAddr("fd00::2")}}
	write(t, s, func(w *Writer) { w.PutPod(host); w.PutPod(pod) })
	snap := s.Snapshot()
	for _, a := range pod.IPs {
		if p, ok := snap.PodByIP(a); !ok || p != pod {
			t.Errorf("%s belongs to %v", a, p)
		}
	}
	if p, ok := snap.PodByIP(addr(1)); ok {
		t.Errorf("a host-network pod was found by the node's address: %v", p)
	}
}

func TestAWatcherNamesWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewStore()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		write(t, s, func(w *Writer) { w.PutService(service(1)); w.PutNode(&Node{Name: "n1"}) })
		w, err := s.Watch(ServiceKind | NodeKind)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		expect := func(services []string, nodes []string) {
			t.Helper()
			_, c, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got, gotNodes []string
			for n := range c.Of(ServiceKind) {
				got = append(got, n.Name)
			}
			for n := range c.Of(NodeKind) {
				gotNodes = append(gotNodes, n.Name)
			}
			slices.Sort(got)
			slices.Sort(gotNodes)
			if !slices.Equal(got, services) || !slices.Equal(gotNodes, nodes) {
				t.Errorf("changed: %v %v, want %v %v", got, gotNodes, services, nodes)
			}
		}
		expect([]string{"svc-00001"}, []string{"n1"})
		write(t, s, func(w *Writer) { w.PutEndpointSlice(slice(7, 1, 0)) })
		expect([]string{"svc-00007"}, nil)
		// A slice that changes its owner touches both services.
		moved := *slice(7, 1, 0)
		moved.Service = "svc-00008"
		write(t, s, func(w *Writer) { w.PutEndpointSlice(&moved) })
		expect([]string{"svc-00007", "svc-00008"}, nil)
		write(t, s, func(w *Writer) { w.Delete(EndpointSliceKind, moved.Name); w.Delete(NodeKind, Name{Name: "n1"}) })
		expect([]string{"svc-00008"}, []string{"n1"})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := w.Next(ctx); err == nil {
			t.Error("Next went on without a change after its context ended")
		}
	})
}

func TestWaitSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewStore()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		done := make(chan error, 1)
		go func() { done <- s.WaitSynced(t.Context(), ServiceKind|NodeKind) }()
		s.MarkSynced(ServiceKind)
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("synced too early")
		default:
		}
		s.MarkSynced(NodeKind)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
