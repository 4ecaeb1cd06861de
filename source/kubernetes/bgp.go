package kubernetes

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"wayleave.dev/api"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// bgp watches the kinds of BGP once the API server knows them.
func (s *Source) bgp(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		custom(ctx, s, api.BGPPeers, model.BGPPeerKind, source.BGPPeer, (*model.Writer).PutBGPPeer)
	})
	wg.Go(func() {
		custom(ctx, s, api.BGPConfigurations, model.BGPConfigurationKind, source.BGPConfiguration,
			(*model.Writer).PutBGPConfiguration)
	})
	wg.Go(func() {
		custom(ctx, s, api.BGPAdvertisements, model.BGPAdvertisementKind, source.BGPAdvertisement,
			(*model.Writer).PutBGPAdvertisement)
	})
	wg.Wait()
}

// secretsRetry is the interval at which Secrets are tried again while the API server is unreachable.
const secretsRetry = time.Second

// peerSecrets watches the Secrets of one namespace, which contain passwords of BGP sessions. If a role of an earlier
// version denies access, the kind counts as synced: sessions without a password work.
func (s *Source) peerSecrets(ctx context.Context) {
	told := false
	for {
		wait := secretsRetry
		_, err := s.Client.CoreV1().Secrets(model.PeersNamespace).List(ctx, metav1.ListOptions{Limit: 1})
		switch {
		case err == nil:
			lw := cache.NewListWatchFromClient(s.Client.CoreV1().RESTClient(), "secrets", model.PeersNamespace,
				fields.Everything())
			sink := &sink[*corev1.Secret, model.PeerSecret]{source: s, kind: model.PeerSecretKind,
				convert: source.PeerSecret, put: (*model.Writer).PutPeerSecret}
			s.follow(ctx, cache.NewReflectorWithOptions(lw, &corev1.Secret{}, sink,
				cache.ReflectorOptions{Name: "peer secrets"}))
			return
		case apierrors.IsForbidden(err):
			if !told {
				s.Log.Warn("cannot read Secrets with passwords of BGP sessions", "namespace", model.PeersNamespace,
					"err", err)
			}
			told, wait = true, cidrRefused
			s.Store.MarkSynced(model.PeerSecretKind)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
