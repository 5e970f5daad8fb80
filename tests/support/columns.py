"""The published columns of every table, written down by hand: the package's own lists are compared with them."""

from __future__ import annotations

from collections.abc import Mapping

COLUMNS: Mapping[str, tuple[str, ...]] = {
    name: tuple(columns.split(","))
    for name, columns in {
        "leaderboard": "rank,dataset,model,detector,norm,eps,robust_accuracy_at_fpr_5,robust_accuracy_low,"
        "robust_accuracy_high,adaptive_undetected_at_fpr_5,worst_auroc,worst_perturbation,mean_auroc_seen,"
        "mean_auroc_unseen,n_unseen,control_flagged_at_fpr_5,benign_flagged_at_fpr_5,fpr_realised_5,surrogate,flags,"
        "seeds,seed_sd,protocol_digest,n_images,not_ranked_reason,robust_accuracy_is_upper_bound,tpr_at_fpr_1,"
        "series_digest,reencoded_flagged_at_fpr_5,shadow_flagged_at_fpr_5,shadow_robust,shadow_source_robust,n_shadow,"
        "false_alarm_at_quarter_eps,price,price_low,price_high,r0_median,rd_median,n_price,n_rd_censored,n_r0_censored,"
        "passes_once,passes_majority,accuracy_rank",
        "metrics": "dataset,model,seed,perturbation,kind,family,norm,eps,outcome,detector,fit_on,seen,negatives,"
        "n_positive,n_negative,auroc,auroc_low,auroc_high,average_precision,tpr_at_fpr_1,tpr_at_fpr_5,tpr_at_fpr_10,"
        "undetected_success_at_fpr_5,control_flagged_at_fpr_5,reason",
        "scores": "dataset,model,seed,perturbation,detector,index,label,clean_prediction,prediction,set,score,"
        "flagged_at_fpr_5,success,l0,l1,l2,linf",
        "propagation": "dataset,model,seed,perturbation,population,depth,tap,metric,n,mean,q05,q50,q95",
        "perturbations": "dataset,model,seed,perturbation,kind,family,library,norm,eps,n,success_rate,mean_l0,mean_l2,"
        "mean_linf,max_linf,forwards_per_image,backwards_per_image,flags,reason",
        "attacks": "dataset,model,seed,perturbation,group,kind,against,norm,eps,n,parts,detector,success_rate,"
        "flagged_at_fpr_5,undetected_success_at_fpr_5,success_rate_8bit,flagged_at_fpr_5_8bit,"
        "undetected_success_at_fpr_5_8bit,surrogate_follows",
        "rejection_curve": "dataset,model,seed,detector,norm,eps,alpha,share,low,high,n,reason",
        "radii": "dataset,model,seed,detector,index,r0,rd,reach",
        "past_all": "dataset,model,seed,norm,eps,detectors,measure,detector,n,share,low,high,reason",
        "timings": "dataset,model,seed,what,name,seconds,ms_per_image",
    }.items()
}
