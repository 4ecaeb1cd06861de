//go:build ignore

// Redirection of packets of established connections of pods: package fastpath describes it. License: see LICENSE of the
// repository; the kernel gets "Dual BSD/GPL", since functions of connection tracking are for GPL programs only.
//
// Addresses of both families are 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define STACK TC_ACT_UNSPEC // TCX_NEXT: other programs, then the network stack
#define AF_INET 2
#define AF_INET6 10

// CHECK is how long a flow is used before connection tracking is asked again, in ns.
#define CHECK 100000000ull

// Bits of nf_conn.status (include/uapi/linux/netfilter/nf_conntrack_common.h).
#define SEEN_REPLY (1 << 1)
#define ASSURED (1 << 2)
#define CONFIRMED (1 << 3)
#define NAT (3 << 4)
#define SEQ_ADJUST (1 << 6)
#define DYING (1 << 9)
#define TEMPLATE (1 << 11)
#define UNTRACKED (1 << 12)
#define HELPER (1 << 13)
#define EXCLUDED (NAT | SEQ_ADJUST | DYING | TEMPLATE | UNTRACKED | HELPER)

#define TCP_ESTABLISHED 3 // TCP_CONNTRACK_ESTABLISHED

// The kernel's types, with the fields that are read; the loader finds their places.
struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	unsigned long status;
	__u32 mark;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

// bpf_ct_opts has its first 12 bytes in each kernel (net/netfilter/nf_conntrack_bpf.c).
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
extern int bpf_ct_change_timeout(struct nf_conn *ct, __u32 milliseconds) __ksym;
extern void bpf_ct_release(struct nf_conn *ct) __ksym;

struct address {
	__u32 word[4];
};

// pod is a pod of this node that may be reached by redirection.
struct pod {
	__u32 link; // the node's end
	__u32 mtu;
	__u8 macs[12]; // of the pod, of the node's end
};

struct flow_key {
	__u32 link; // where packets arrive
	struct address src, dst;
	__u16 sport, dport;
	__u32 protocol;
};

// Ways of a flow.
#define WAY_STACK 0
#define WAY_PEER 1
#define WAY_NEIGHBOUR 2

struct flow {
	__u64 checked; // ns
	__u32 link;    // where packets go
	__u32 mtu;
	__u8 macs[12];
	__u32 way;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct address);
	__type(value, struct pod);
} pods SEC(".maps");

// uplinks are links, other than those of pods, from and to which packets are redirected.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} uplinks SEC(".maps");

// flows is a cache of answers of connection tracking: an entry that is lost is made again.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

// timeouts are those of established connections in ms: of TCP, of UDP.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} timeouts SEC(".maps");

// redirected counts packets by way.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} redirected SEC(".maps");

// packet is what was read of a packet.
struct packet {
	struct flow_key key;
	bool is6;
	bool ends;    // SYN, FIN or RST: connection tracking must see it
	bool is_bare; // TCP without data
	__u32 headers; // bytes before the data, without the link's
	__u32 bytes;   // of the network packet, as its header says
};

static __always_inline bool read_tcp(struct packet *p, struct tcphdr *tcp, void *end)
{
	if ((void *)(tcp + 1) > end)
		return false;
	p->key.sport = tcp->source;
	p->key.dport = tcp->dest;
	p->ends = tcp->syn || tcp->fin || tcp->rst;
	p->headers += tcp->doff * 4;
	p->is_bare = p->bytes == p->headers;
	return true;
}

static __always_inline bool read_udp(struct packet *p, struct udphdr *udp, void *end)
{
	if ((void *)(udp + 1) > end)
		return false;
	p->key.sport = udp->source;
	p->key.dport = udp->dest;
	p->headers += sizeof(*udp);
	return true;
}

// read_packet returns false for a packet that is left to the stack.
static __always_inline bool read_packet(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end, *next;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return false;
	p->key.link = skb->ifindex;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->ttl <= 1 ||
		    ip->frag_off & bpf_htons(0x3fff))
			return false;
		p->key.src.word[2] = p->key.dst.word[2] = bpf_htonl(0xffff);
		p->key.src.word[3] = ip->saddr;
		p->key.dst.word[3] = ip->daddr;
		p->key.protocol = ip->protocol;
		p->bytes = bpf_ntohs(ip->tot_len);
		p->headers = sizeof(*ip);
		next = ip + 1;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->version != 6 || ip->hop_limit <= 1)
			return false;
		__builtin_memcpy(&p->key.src, &ip->saddr, 16);
		__builtin_memcpy(&p->key.dst, &ip->daddr, 16);
		p->is6 = true;
		p->key.protocol = ip->nexthdr;
		p->bytes = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		p->headers = sizeof(*ip);
		next = ip + 1;
	} else {
		return false;
	}
	if (p->key.protocol == IPPROTO_TCP)
		return read_tcp(p, next, end);
	if (p->key.protocol == IPPROTO_UDP)
		return read_udp(p, next, end);
	return false;
}

// fits reports whether no packet, or no segment of a large one, exceeds the MTU.
static __always_inline bool fits(struct __sk_buff *skb, struct packet *p, __u32 mtu)
{
	if (skb->gso_size)
		return skb->gso_size + p->headers <= mtu;
	return skb->len - ETH_HLEN <= mtu;
}

// Answers of connection tracking.
#define UNDECIDED 0 // no connection, or one that is being established
#define REFUSED 1   // the stack must have each packet
#define ACCEPTED 2

// ask asks connection tracking about a packet, and has it keep the connection if the answer is ACCEPTED.
static __always_inline int ask(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_ct_opts opts = {.netns_id = BPF_F_CURRENT_NETNS, .l4proto = p->key.protocol};
	__u32 which = p->key.protocol == IPPROTO_UDP, wanted, *timeout;
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *ct;
	int answer = ACCEPTED;

	if (p->is6) {
		__builtin_memcpy(tuple.ipv6.saddr, &p->key.src, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &p->key.dst, 16);
		tuple.ipv6.sport = p->key.sport;
		tuple.ipv6.dport = p->key.dport;
	} else {
		tuple.ipv4.saddr = p->key.src.word[3];
		tuple.ipv4.daddr = p->key.dst.word[3];
		tuple.ipv4.sport = p->key.sport;
		tuple.ipv4.dport = p->key.dport;
	}
	ct = bpf_skb_ct_lookup(skb, &tuple, p->is6 ? sizeof(tuple.ipv6) : sizeof(tuple.ipv4), &opts, sizeof(opts));
	if (!ct)
		return UNDECIDED;
	wanted = CONFIRMED | SEEN_REPLY | (p->key.protocol == IPPROTO_TCP ? ASSURED : 0);
	if (ct->status & EXCLUDED || ct->mark)
		answer = REFUSED;
	else if ((ct->status & wanted) != wanted)
		answer = UNDECIDED;
	else if (p->key.protocol == IPPROTO_TCP && ct->proto.tcp.state != TCP_ESTABLISHED)
		answer = REFUSED;
	if (answer == ACCEPTED) {
		timeout = bpf_map_lookup_elem(&timeouts, &which);
		if (timeout && *timeout)
			bpf_ct_change_timeout(ct, *timeout);
	}
	bpf_ct_release(ct);
	return answer;
}

// find_way fills in where packets of a flow go; false leaves them to the stack.
static __always_inline bool find_way(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct pod *from = bpf_map_lookup_elem(&pods, &p->key.src), *to;
	struct bpf_fib_lookup fib = {};
	__u32 link = p->key.link;

	// A pod sends from its own addresses, and an uplink brings no packets of this node's pods.
	if (from ? from->link != link : !bpf_map_lookup_elem(&uplinks, &link))
		return false;
	to = bpf_map_lookup_elem(&pods, &p->key.dst);
	if (to) {
		f->way = WAY_PEER;
		f->link = to->link;
		f->mtu = to->mtu;
		__builtin_memcpy(f->macs, to->macs, sizeof(f->macs));
		return to->link != link;
	}
	if (!from)
		return false;
	fib.family = p->is6 ? AF_INET6 : AF_INET;
	fib.l4_protocol = p->key.protocol;
	fib.sport = p->key.sport;
	fib.dport = p->key.dport;
	fib.tot_len = 1; // has the MTU of the route returned
	fib.ifindex = link;
	if (p->is6) {
		__builtin_memcpy(fib.ipv6_src, &p->key.src, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->key.dst, 16);
	} else {
		fib.ipv4_src = p->key.src.word[3];
		fib.ipv4_dst = p->key.dst.word[3];
	}
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	f->way = WAY_NEIGHBOUR;
	f->link = fib.ifindex;
	f->mtu = fib.mtu_result;
	return bpf_map_lookup_elem(&uplinks, &f->link) != NULL;
}

// forget removes a flow and the answers to it, whose end connection tracking sees.
static __always_inline void forget(struct packet *p, struct flow *f)
{
	struct flow_key back = {.link = f->link, .src = p->key.dst, .dst = p->key.src, .sport = p->key.dport,
				.dport = p->key.sport, .protocol = p->key.protocol};

	bpf_map_delete_elem(&flows, &p->key);
	bpf_map_delete_elem(&flows, &back);
}

// hop counts the packet's passage of the node, as the stack does.
static __always_inline bool hop(struct __sk_buff *skb, bool is6, const __u8 *macs)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	__u8 limit;

	if (!is6) {
		struct iphdr *ip = (void *)(eth + 1);
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return false;
		if (macs)
			__builtin_memcpy(eth, macs, 12);
		ip->ttl--;
		sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		return true;
	}
	struct ipv6hdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end)
		return false;
	if (macs)
		__builtin_memcpy(eth, macs, 12);
	limit = ip->hop_limit - 1;
	return bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, hop_limit), &limit, 1,
				   BPF_F_RECOMPUTE_CSUM) == 0;
}

SEC("tc")
int wl_fastpath(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_coarse_ns(), *count;
	struct packet p = {};
	struct flow *f, fresh = {};
	__u32 way, link;

	if (!read_packet(skb, &p))
		return STACK;
	f = bpf_map_lookup_elem(&flows, &p.key);
	if (p.ends) {
		if (f)
			forget(&p, f);
		return STACK;
	}
	if (!f || now - f->checked > CHECK) {
		int answer = UNDECIDED;

		fresh.checked = now;
		if (find_way(skb, &p, &fresh))
			answer = ask(skb, &p);
		else if (!f)
			return STACK;
		if (answer == UNDECIDED) {
			if (f)
				bpf_map_delete_elem(&flows, &p.key);
			return STACK;
		}
		if (answer == REFUSED)
			fresh.way = WAY_STACK;
		bpf_map_update_elem(&flows, &p.key, &fresh, BPF_ANY);
		// An acknowledgement tells connection tracking how far the connection is.
		if (p.is_bare)
			return STACK;
		f = &fresh;
	}
	way = f->way;
	link = f->link;
	if (way == WAY_STACK || !fits(skb, &p, f->mtu))
		return STACK;
	count = bpf_map_lookup_elem(&redirected, &way);
	if (count)
		++*count;
	if (way == WAY_PEER)
		return hop(skb, p.is6, f->macs) ? bpf_redirect_peer(link, 0) : STACK;
	return hop(skb, p.is6, NULL) ? bpf_redirect_neigh(link, NULL, 0, 0) : STACK;
}

char _license[] SEC("license") = "Dual BSD/GPL";
