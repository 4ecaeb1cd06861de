package writeback

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/model"
)

// defaultBalancer is an annotation of the writer's Lease in PeersNamespace: who gives addresses to Services without a
// class.
const defaultBalancer = "wayleave.dev/default-load-balancer"

// Values of the annotation.
const (
	chosenOwn   = "wayleave"
	chosenOther = "other"
)

// BalancerChoice decides once for a cluster whether Wayleave gives addresses to Services without a class. A choice for
// Wayleave is final: an upgrade, or another load balancer that appears later, does not change it.
type BalancerChoice struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// TakeOver is the setting loadbalancer.takeOver.
	TakeOver bool
}

// Decide reports whether Wayleave serves Services without a class; otherwise rival is a pod of the other load balancer.
// It records the choice before it returns.
func (b BalancerChoice) Decide(ctx context.Context) (own bool, rival model.Name, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	leases := b.Client.CoordinationV1().Leases(PeersNamespace)
	l, err := leases.Get(ctx, askLease, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return false, rival, fmt.Errorf("choice of the load balancer: %w", err)
	}
	if missing {
		l = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: PeersNamespace, Name: askLease}}
	}
	if own, rival, err = b.choose(ctx, l.Annotations[defaultBalancer]); err != nil {
		return false, rival, fmt.Errorf("choice of the load balancer: %w", err)
	}
	choice := chosenOther
	if own {
		choice = chosenOwn
	}
	if l.Annotations[defaultBalancer] == choice {
		return own, rival, nil
	}
	l = l.DeepCopy()
	metav1.SetMetaDataAnnotation(&l.ObjectMeta, defaultBalancer, choice)
	if missing {
		_, err = leases.Create(ctx, l, metav1.CreateOptions{})
	} else {
		_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	}
	if err != nil {
		return false, rival, fmt.Errorf("choice of the load balancer: %w", err)
	}
	return own, rival, nil
}

func (b BalancerChoice) choose(ctx context.Context, before string) (own bool, rival model.Name, err error) {
	if b.TakeOver || before == chosenOwn {
		return true, rival, nil
	}
	if before == "" {
		// An installation of an earlier version that serves anything has a pool.
		pools, err := b.Dynamic.Resource(poolResource()).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil && !apierrors.IsNotFound(err) { // not found: the kind does not exist yet
			return false, rival, err
		}
		if err == nil && len(pools.Items) > 0 {
			return true, rival, nil
		}
	}
	rival, err = otherBalancer(ctx, b.Client)
	return rival.Name == "", rival, err
}

// otherBalancer finds a pod of another load balancer: a speaker of MetalLB, which uses the node's network, as no pod of
// a tenant may; or a proxy of k3s' ServiceLB, in kube-system.
func otherBalancer(ctx context.Context, client kubernetes.Interface) (model.Name, error) {
	for _, look := range []struct {
		namespace, labels string
		hostNetwork       bool
	}{
		{metav1.NamespaceAll, "app.kubernetes.io/name=metallb", true},
		{metav1.NamespaceAll, "app=metallb", true},
		{metav1.NamespaceSystem, "svccontroller.k3s.cattle.io/svcname", false},
	} {
		list, err := client.CoreV1().Pods(look.namespace).List(ctx, metav1.ListOptions{LabelSelector: look.labels,
			Limit: 500})
		if err != nil {
			return model.Name{}, err
		}
		for _, p := range list.Items {
			ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
			if !ended && (p.Spec.HostNetwork || !look.hostNetwork) {
				return model.Name{Namespace: p.Namespace, Name: p.Name}, nil
			}
		}
	}
	return model.Name{}, nil
}

// FollowBalancerChoice calls set with whether Wayleave serves Services without a class: once the choice is known, and
// after each change of it. A cluster without a recorded choice is one of an earlier version, which serves them. A
// choice that is no longer recorded stays in force. It returns ctx's error when ctx ends.
func FollowBalancerChoice(ctx context.Context, client kubernetes.Interface, set func(own bool)) error {
	w := watchLeases(ctx, client, PeersNamespace, oneLease(askLease))
	known, last := false, ""
	for {
		var unsynced <-chan time.Time
		if !w.synced() {
			unsynced = time.After(100 * time.Millisecond)
		} else {
			now := last
			if l := w.lease(askLease); l != nil && l.Annotations[defaultBalancer] != "" {
				now = l.Annotations[defaultBalancer]
			}
			if !known || now != last {
				known, last = true, now
				set(now != chosenOther)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.changed:
		case <-unsynced:
		}
	}
}
