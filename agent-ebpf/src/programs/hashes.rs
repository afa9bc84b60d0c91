//! Hash maps inside an array of maps, which user space puts there and exchanges.
//!
//! In: nothing; the definitions are data for the loader. Out: [`Hashes`], the array, and [`Hash`], one map of it. What
//! always holds: neither array nor template carries BTF types. Kernels up to 6.1 accept an inner map only if it agrees
//! with the template even in that (`timer_off` of `bpf_map_meta_equal`), and maps that aya creates at run time carry
//! none; `aya_ebpf::btf_maps::ArrayOfMaps` cannot be told so, hence this file. Not here: what the maps hold.

use core::ffi::c_void;
use core::marker::PhantomData;

use aya_ebpf::helpers::generated::{bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem};

const HASH: usize = aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_HASH as usize;
const ARRAY_OF_MAPS: usize = aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as usize;

/// What an inner map must be like: sizes of key and value in bytes.
#[repr(C)]
pub struct Template<const KEY: usize, const VALUE: usize> {
    r#type: *const [i32; HASH],
    key_size: *const [i32; KEY],
    value_size: *const [i32; VALUE],
    max_entries: *const [i32; 1],
}

/// An array of hash maps. Its length is set by the loader.
#[repr(C)]
pub struct Hashes<const KEY: usize, const VALUE: usize> {
    r#type: *const [i32; ARRAY_OF_MAPS],
    key_size: *const [i32; 4],
    value_size: *const [i32; 4],
    max_entries: *const [i32; 1],
    values: [*const Template<KEY, VALUE>; 0],
}

// SAFETY: the fields are placeholders for the loader and are never dereferenced; the kernel synchronises the map.
unsafe impl<const KEY: usize, const VALUE: usize> Sync for Hashes<KEY, VALUE> {}

impl<const KEY: usize, const VALUE: usize> Hashes<KEY, VALUE> {
    pub const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key_size: core::ptr::null(),
            value_size: core::ptr::null(),
            max_entries: core::ptr::null(),
            values: [],
        }
    }

    /// The map in slot `index`, seen as a map from `K` to `V`.
    #[inline(always)]
    pub fn get<K, V>(&self, index: u32) -> Option<&'static Hash<K, V>> {
        const { assert!(size_of::<K>() == KEY && size_of::<V>() == VALUE) };
        // SAFETY: `self` is the map (the loader replaces its address); what comes back is null or a map that lives at
        // least as long as this program run. `Hash` has no fields: no byte of it is ever read.
        unsafe {
            let inner = bpf_map_lookup_elem((&raw const *self).cast_mut().cast(), (&raw const index).cast());
            inner.cast::<Hash<K, V>>().as_ref()
        }
    }
}

/// One hash map, known only by its address.
#[repr(C)]
pub struct Hash<K, V> {
    _types: PhantomData<(K, V)>,
}

impl<K, V> Hash<K, V> {
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        (&raw const *self).cast_mut().cast()
    }

    #[inline(always)]
    pub fn get_ptr(&self, key: &K) -> Option<*const V> {
        self.get_ptr_mut(key).map(<*mut V>::cast_const)
    }

    /// A live value. The kernel may reuse it for another key once its own is removed.
    #[inline(always)]
    pub fn get_ptr_mut(&self, key: &K) -> Option<*mut V> {
        // SAFETY: a map and a key of its size.
        let value = unsafe { bpf_map_lookup_elem(self.as_ptr(), (&raw const *key).cast()) };
        if value.is_null() { None } else { Some(value.cast()) }
    }

    /// False: no room, or busy.
    #[inline(always)]
    pub fn insert(&self, key: &K, value: &V, flags: u32) -> bool {
        // SAFETY: a map, and key and value of its sizes.
        let result = unsafe {
            bpf_map_update_elem(
                self.as_ptr(),
                (&raw const *key).cast(),
                (&raw const *value).cast(),
                u64::from(flags),
            )
        };
        result == 0
    }

    /// False: it was not there, or busy.
    #[inline(always)]
    pub fn remove(&self, key: &K) -> bool {
        // SAFETY: a map and a key of its size.
        let result = unsafe { bpf_map_delete_elem(self.as_ptr(), (&raw const *key).cast()) };
        result == 0
    }
}
