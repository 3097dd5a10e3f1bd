//! What is said of repeated measurements.

/// Times of one launch, each the mean of a lap's, or ratios of such times.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    launches_per_lap: usize,
    /// Ascending.
    sorted: Vec<f64>,
}

impl Times {
    /// Microseconds of a launch, one number for every lap.
    pub(super) fn new(launches_per_lap: usize, mut us: Vec<f64>) -> Self {
        us.sort_by(f64::total_cmp);
        Self { launches_per_lap, sorted: us }
    }

    /// Laps measured.
    pub fn laps(&self) -> usize {
        self.sorted.len()
    }

    /// Launches of a lap.
    pub fn launches_per_lap(&self) -> usize {
        self.launches_per_lap
    }

    /// The median of the laps.
    pub fn median_us(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The smallest value that at least this share of the laps do not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = super::whole((share * self.sorted.len() as f64).ceil());
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}
