//! Recipes: the options a method is trained with, ours and its paper's.
//!
//! The default recipe trains `conv-small` from nothing in minutes. A paper's recipe fine-tunes a
//! pretrained backbone for much longer; a row says what was published and what is not known.

use std::str::FromStr;

use crate::centers::CentersKind;
use crate::centers::semantic::Variant;
use crate::deep::backbone::BackboneKind;
use crate::deep::method::MethodConfig;
use crate::deep::optimizer::OptimizerKind;
use crate::deep::schedule::Schedule;
use crate::deep::train::TrainOptions;
use crate::error::{Error, ErrorKind, Result};

/// Whose options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recipe {
    /// Ours.
    #[default]
    Default,
    /// The paper's, or its authors' code's.
    Paper,
}

impl FromStr for Recipe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Recipe> {
        match text {
            "default" => Ok(Recipe::Default),
            "paper" => Ok(Recipe::Paper),
            _ => Err(Error::invalid(format!(
                "a recipe is default or paper, got {text:?}"
            ))),
        }
    }
}

impl TrainOptions {
    /// Sets the recipe: optimizer, rates, decay, schedule, epochs, batch, and the method's own
    /// constants. They depend on `backbone`, `weights` and `freeze`; call it before any other option is set.
    ///
    /// # Errors
    /// `Unsupported` for the paper recipe of SHREWD, which is not known.
    pub fn set_recipe(&mut self, recipe: Recipe) -> Result<()> {
        if recipe == Recipe::Default {
            // Above a network that begins with random weights, and without normalization in the head, large steps throw its
            // outputs into the flat ends of tanh. SHREWD learns better with them all the same, and so does every head
            // above features that say something from the beginning (docs/RESULTS.md, the tables of rates;
            // benches/record/2026-11-24-small-collections).
            let from_nothing = self.weights.is_none() && self.backbone != BackboneKind::Identity;
            let is_shrewd = matches!(self.method, MethodConfig::Shrewd(_));
            if !self.method.head().norm && !is_shrewd && from_nothing {
                self.lr = 1e-3;
            }
            if self.weights.is_some() {
                // OrthoHash's share for pretrained backbones.
                self.backbone_lr_scale = 0.1;
            }
            return Ok(());
        }
        let cosine = |floor| Schedule::Cosine { warmup: 0.0, floor };
        let step = |every_epochs, gamma| Schedule::Step {
            every_epochs,
            gamma,
        };
        let (optimizer, lr, scale, decay, schedule, epochs, batch) = match &mut self.method {
            // Supplement C.1 and the authors' code.
            MethodConfig::OrthoHash(config) => {
                config.margin = 0.2;
                config.centers = CentersKind::Bernoulli;
                (
                    OptimizerKind::ADAM,
                    1e-4,
                    0.1,
                    5e-4,
                    step(80, 0.1),
                    100,
                    256,
                )
            }
            // Section 4.4, CIFAR-100; the paper has 1e-4 for its other sets. The program has its own.
            MethodConfig::Shc(config) => match config.variant {
                Variant::Paper => (OptimizerKind::RMSPROP, 7e-5, 1.0, 0.0, cosine(0.0), 300, 64),
                Variant::Released => (
                    OptimizerKind::RMSPROP,
                    1e-4,
                    1.0,
                    1e-5,
                    cosine(1e-3),
                    100,
                    64,
                ),
            },
            // The authors' code with ResNet-50.
            MethodConfig::Csq(config) => {
                config.quantization_weight = 0.05;
                (OptimizerKind::ADAM, 1e-3, 0.01, 0.0, step(10, 0.7), 90, 64)
            }
            // The authors' code.
            MethodConfig::Dpn(_) => (
                OptimizerKind::SGD,
                1e-4,
                1.0,
                5e-4,
                step(100, 0.1),
                200,
                256,
            ),
            // The authors' code for CIFAR; the number of epochs is ours.
            MethodConfig::GreedyHash(_) => {
                (OptimizerKind::SGD, 1e-3, 1.0, 5e-4, step(30, 0.1), 90, 32)
            }
            // A well-known implementation; epochs and batch are ours.
            MethodConfig::HashNet(config) => {
                config.continuation_epochs = 20;
                (
                    OptimizerKind::RMSPROP,
                    1e-5,
                    1.0,
                    0.0,
                    Schedule::Constant,
                    150,
                    64,
                )
            }
            MethodConfig::Shrewd(_) => {
                return Err(ErrorKind::Unsupported(
                    "the published recipe of shrewd could not be read; use the recipe default"
                        .into(),
                )
                .into());
            }
        };
        self.optimizer = optimizer;
        (self.lr, self.backbone_lr_scale, self.weight_decay) = (lr, scale, decay);
        (self.schedule, self.epochs, self.batch) = (schedule, epochs, batch);
        Ok(())
    }
}
