//! Discoveries of features that the build leaves out.

/// Defines a discovery without values, with the traits of those that the features add.
macro_rules! absent_discovery {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(std::convert::Infallible);

        impl $crate::Discovery for $name {
            fn members(&self) -> Vec<$crate::Member> {
                match self.0 {}
            }

            fn sightings(&self, _digest: &str) -> sepal_swarm::Sightings {
                match self.0 {}
            }

            fn withdraw(&self) {
                match self.0 {}
            }
        }

        impl sepal_swarm::Dial for $name {
            fn find(&self, _name: &str) -> Option<sepal_swarm::Endpoint> {
                match self.0 {}
            }
        }
    };
}

pub(crate) use absent_discovery;
